"""The demo's page as visitors use it, in a real browser."""

import json
from pathlib import Path

import crescents
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    # playwright and gradio's client leave sockets and loops to the collector.
    pytest.mark.filterwarnings("default"),
]
PROMPT = "a red cat and a blue dog"


def says(page, text, where="generate"):
    page.locator(f"#{where}-status", has_text=text).wait_for()


def ask(page, prompt=PROMPT):
    page.locator("#prompt textarea").fill(prompt)


def switch_on(page, name, place="1 of 1"):
    page.locator(f"#edit-{name} > button").first.click()
    page.locator(f"#switch-{name}").click()
    page.locator(f"#edit-{name}", has_text=f"{name}: on, {place}").wait_for()


def click_words(page, where, *words):
    for word in words:
        page.locator(f"{where} .words").get_by_role("button", name=word, exact=True).first.click()
        page.locator(f"{where} .phrases", has_text=word).wait_for()


def phrases(page, where):
    found = page.locator(f"{where} .phrases button").all_inner_texts()
    return [text.removesuffix(" ×") for text in found]


def typed_steps(page, count, side=64):
    """Many steps of a large picture take a while, even with a tiny model."""
    if not page.locator("#steps").is_visible():
        page.locator("#settings").get_by_role("button", name="Settings").click()
    page.locator("#steps input[type=number]").fill(str(count))
    page.get_by_label("Width").fill(str(side))
    page.get_by_label("Height").fill(str(side))
    page.keyboard.press("Tab")


def generate(page):
    page.locator("#generate").click()
    says(page, "Done.")


def saved_picture(page, path, number=-1):
    images = page.locator("#pair img")
    images.first.wait_for()
    source = images.nth(number if number >= 0 else images.count() - 1).get_attribute("src")
    path.write_bytes(page.request.get(source).body())
    return path


# Generate.


def test_generating_compares_without_and_with_the_edits(page):
    ask(page)
    switch_on(page, "decor")
    click_words(page, "#edit-decor", "dog")
    page.locator("#seed input").fill("5")
    generate(page)
    assert "decor removed" in page.locator("#report").inner_text()
    assert page.locator("#pair img").count() == 2
    assert page.locator("#slider img").count() == 2
    page.locator("#visit img").first.wait_for()
    page.locator("#generate-again").get_by_role("button", name="Make it again").click()
    command = page.locator("#generate-command").inner_text().replace("\n", " ")
    assert "t2iedit generate" in command and "--seed 5" in command and "phrases" in command


def test_before_and_after_by_keyboard(page):
    switch_on(page, "decor")
    click_words(page, "#edit-decor", "circle")
    generate(page)
    slider = page.locator("#place input[type=range]")
    slider.focus()
    before = page.locator("#slider").inner_html()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "70"
    page.wait_for_function(
        "before => document.querySelector('#slider').innerHTML != before", arg=before
    )


def test_words_are_clicked_into_phrases(page):
    ask(page)
    switch_on(page, "t2i_zero")
    where = "#edit-t2i_zero"
    click_words(page, where, "red", "cat", "dog")
    assert phrases(page, where) == ["red cat", "dog"]
    page.locator(f"{where} .words").get_by_role("button", name="blue", exact=True).click()
    page.locator(f"{where} .phrases", has_text="blue dog").wait_for()
    page.locator(f"{where} .phrases").get_by_role("button", name="red cat").click()
    page.locator(f"{where} .phrases button").nth(1).wait_for(state="detached")
    assert phrases(page, where) == ["blue dog"]
    ask(page, "a red cat alone")
    page.locator(f"{where} .phrases button.absent").wait_for()
    ask(page)
    page.locator(f"{where} .phrases button:not(.absent)").wait_for()


def test_words_are_clicked_by_keyboard(page):
    ask(page)
    switch_on(page, "decor")
    page.locator("#edit-decor .words button", has_text="blue").focus()
    page.keyboard.press("Enter")
    page.locator("#edit-decor .phrases", has_text="blue").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "blue"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.locator("#edit-decor .phrases", has_text="blue dog").wait_for()


def test_edits_are_switched_and_reordered(page):
    ask(page)
    switch_on(page, "decor")
    click_words(page, "#edit-decor", "dog")
    switch_on(page, "t2i_zero", "2 of 2")
    page.locator("#earlier-t2i_zero").click()
    page.locator("#edit-t2i_zero", has_text="t2i_zero: on, 1 of 2").wait_for()
    generate(page)
    told = page.locator("#report").inner_text()
    assert told.index("t2i_zero") < told.index("decor")
    page.locator("#switch-decor").click()
    page.locator("#edit-t2i_zero", has_text="t2i_zero: on, 1 of 1").wait_for()


def test_a_new_plugin_appears_and_its_crash_leaves_the_page_working(page):
    switch_on(page, "breaking")
    page.locator("#edit-breaking", has_text="Whether it breaks with a bang.").wait_for()
    page.locator("#generate").click()
    says(page, 'the edit "breaking" failed with KeyError')
    told = page.locator("#generate-status").inner_text()
    assert "secret.txt" in told and "/home/host" not in told
    page.locator("#switch-breaking").click()
    page.locator("#edit-breaking", has_text="on, ").wait_for(state="detached")
    generate(page)


def test_cancel_stops_and_the_page_goes_on(page):
    ask(page)
    typed_steps(page, 100, 512)
    page.locator("#generate").click()
    says(page, "step")
    assert "left" in page.locator("#generate-status", has_text="left").inner_text()
    page.locator("#generate-cancel").click()
    says(page, "Stopped.")
    # At once, while Gradio may still be cancelling.
    page.locator("#generate").click()
    says(page, "step")
    page.locator("#generate-cancel").click()
    says(page, "Stopped.")
    typed_steps(page, 2)
    generate(page)


def test_what_waits_is_cancelled_too(page, visitor):
    typed_steps(page, 100, 1024)
    page.locator("#generate").click()
    says(page, "step")
    other = visitor()
    ask(other, "a cat")
    other.locator("#generate").click()
    other.wait_for_timeout(500)
    other.locator("#generate-cancel").click()
    says(other, "Stopped.")
    assert "step" in page.locator("#generate-status").inner_text()
    page.locator("#generate-cancel").click()
    says(page, "Stopped.")
    other.wait_for_timeout(1500)
    assert other.locator("#pair img").count() == 0


def test_wrong_input_is_refused_with_a_sentence(page):
    ask(page, "x" * 1001)
    page.locator("#generate").click()
    says(page, "may be at most 1000 here, not 1001")


def test_wrong_settings_are_refused_with_a_sentence(page):
    page.locator("#settings").get_by_role("button", name="Settings").click()
    page.locator("#others textarea, #others input").fill('{"conditioning": "/etc/passwd"}')
    page.locator("#generate").click()
    says(page, 'know no "conditioning"')


def test_two_visitors_at_once_keep_their_own_pages(page, visitor):
    other = visitor()
    ask(page, "a red cat")
    ask(other, "a blue dog")
    page.locator("#generate").click()
    other.locator("#generate").click()
    for one, prompt in ((page, "a red cat"), (other, "a blue dog")):
        says(one, "Done.")
        assert one.locator("#visit img").count() == 1
        one.locator("#generate-again").get_by_role("button", name="Make it again").click()
        assert prompt in one.locator("#generate-command").inner_text()


def test_what_a_visitor_types_is_text_and_never_a_program(page):
    evil = "a <img src=x onerror=window.hacked=1> ${window.hacked=2} {{window.hacked=3}} cat"
    ask(page, evil)
    switch_on(page, "decor")
    click_words(page, "#edit-decor", "cat")
    generate(page)
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#inspect").click()
    says(page, "Done.", "inspect")
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None


# Reproduce.


def test_a_dropped_picture_sets_all_controls(page, tmp_path, visitor):
    ask(page)
    switch_on(page, "decor")
    click_words(page, "#edit-decor", "blue", "dog")
    page.locator("#seed input").fill("7")
    generate(page)
    picture = saved_picture(page, tmp_path / "made.png")
    other = visitor()
    other.locator("#dropped input[type=file]").set_input_files(picture)
    other.locator("#edit-decor", has_text="decor: on, 1 of 1").wait_for()
    assert other.locator("#prompt textarea").input_value() == PROMPT
    assert other.locator("#seed input").input_value() == "7"
    assert phrases(other, "#edit-decor") == ["blue dog"]
    generate(other)
    again = saved_picture(other, tmp_path / "again.png")
    with Image.open(picture) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()


def test_a_picture_may_be_dropped_anywhere(page, tmp_path, visitor):
    ask(page, "a green cat")
    generate(page)
    data = saved_picture(page, tmp_path / "made.png").read_bytes()
    other = visitor()
    carried = other.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'made.png', {type: 'image/png'}));
            return data;
        }""",
        list(data),
    )
    other.locator("h1").dispatch_event("drop", {"dataTransfer": carried})
    other.wait_for_function("document.querySelector('#prompt textarea').value == 'a green cat'")


def test_a_picture_of_the_visit_sets_the_controls_again(page):
    ask(page, "a red cat")
    generate(page)
    ask(page, "a blue dog")
    generate(page)
    page.wait_for_function("document.querySelectorAll('#visit img').length == 2")
    page.locator("#visit img").nth(1).click()
    page.locator("#use:not([disabled])").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value == 'a red cat'")


def test_an_example_fills_the_controls_and_runs(page):
    page.get_by_role("tab", name="Sweep").click()
    page.get_by_role("button", name="Remove the red circle").click()
    says(page, "Done.")
    page.locator("#edit-decor", has_text="decor: on, 1 of 1").wait_for()
    assert page.locator("#slider").is_visible()


# The other tabs.


def test_inspect_shows_tokens_matrices_and_where_it_looks(page):
    ask(page)
    switch_on(page, "decor")
    click_words(page, "#edit-decor", "dog")
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#inspect").click()
    says(page, "Done.", "inspect")
    chips = page.locator("#tokens li").all_inner_texts()
    assert any("dog" in chip and "edited by" in chip and "near" in chip for chip in chips)
    assert "decor removed" in page.locator("#inspect-report").inner_text()
    for title in ("before", "after", "difference"):
        page.locator(f"#matrix-{title} img").wait_for(state="attached")
    page.locator("#look").click()
    says(page, "choose a word of the prompt first", "look")
    click_words(page, "#word", "cat")
    page.locator("#look").click()
    says(page, "Done.", "look")
    page.locator("#heat img").first.wait_for()
    page.locator("#inspect-again").get_by_role("button", name="Make it again").click()
    assert "--attention cat" in page.locator("#inspect-command").inner_text()


def test_sweep_makes_a_grid_whose_cells_carry_their_recipes(page):
    ask(page)
    page.get_by_role("tab", name="Sweep").click()
    page.locator("#sweep").click()
    says(page, 'switch the edit "decor" on', "sweep")
    switch_on(page, "decor")
    click_words(page, "#edit-decor", "dog")
    page.get_by_label("FIRST..LAST..STEP").first.fill("0..1..0.5")
    page.locator("#sweep").click()
    says(page, "Done.", "sweep")
    page.locator("#grid img").wait_for()
    page.wait_for_function("document.querySelectorAll('#cells img').length == 3")
    source = page.locator("#cells img").nth(1).get_attribute("src")
    made = page.request.get(source).body()
    assert b'"alpha": 0.5' in made
    page.locator("#sweep-again").get_by_role("button", name="Make it again").click()
    assert "alpha=0..1..0.5" in page.locator("#sweep-command").inner_text()


def test_learn_gives_a_concept_that_the_other_tabs_use_at_once(page, tmp_path):
    page.get_by_role("tab", name="Learn").click()
    page.locator("#learn").click()
    says(page, "there are no pictures to learn from", "learn")
    page.locator("#pictures input[type=file]").set_input_files(crescents.saved(tmp_path))
    page.wait_for_function("document.querySelectorAll('#pictures img').length >= 5")
    page.locator("#category textarea, #category input").fill("cat")
    page.locator("#placeholder textarea, #placeholder input").fill("<moon>")
    page.locator("#tabs").get_by_label("number input for steps").fill("6")
    page.keyboard.press("Tab")
    page.locator("#learn").click()
    says(page, "Done.", "learn")
    assert page.locator("#losses svg").count() == 3
    page.locator("#strip img").wait_for()
    assert "Learned <moon> in 6 steps" in page.locator("#learn-report").inner_text()
    with page.expect_download() as caught:
        page.locator("#concept a").first.click()
    assert Path(caught.value.suggested_filename).name == "moon.safetensors"
    page.locator("#use-concept").click()
    page.locator("#edit-core", has_text="core: on, 1 of 1").wait_for()
    assert page.locator("#prompt textarea").input_value() == "a photo of a <moon>"
    generate(page)
    assert "core put in <moon> as 1 learned vector" in page.locator("#report").inner_text()
    picture = saved_picture(page, tmp_path / "made.png")
    with Image.open(picture) as made:
        recipe = json.loads(made.info["t2iedit"])
    assert recipe["edits"][0]["options"]["concept"] == ["moon.safetensors"]
    page.locator("#dropped input[type=file]").set_input_files(picture)
    page.wait_for_timeout(1000)
    generate(page)


def test_learning_that_is_stopped_keeps_what_it_has(page, tmp_path):
    page.get_by_role("tab", name="Learn").click()
    page.locator("#pictures input[type=file]").set_input_files(crescents.saved(tmp_path))
    page.wait_for_function("document.querySelectorAll('#pictures img').length >= 5")
    page.locator("#category textarea, #category input").fill("cat")
    page.locator("#learn").click()
    says(page, "step", "learn")
    page.locator("#learn-cancel").click()
    page.locator("#learn-report", has_text="is kept as it was then").wait_for()
    assert "stopped after step" in page.locator("#learn-report").inner_text()
    page.locator("#concept a").first.wait_for()


def test_quantise_measures_both_models(page):
    page.get_by_role("tab", name="Quantise").click()
    page.locator("#estimate", has_text="about 0.2 MB then").wait_for()
    page.locator("#quantise").click()
    says(page, "Done.", "quantise")
    table = page.locator("#quantise-table").inner_text()
    for row in ("estimated", "measured", "at its peak", "Seconds a picture", "Speed"):
        assert row in table
    assert page.locator("#quantise-slider img").count() == 2
    page.locator("#packed a").first.wait_for()
    page.locator("#quantise-again").get_by_role("button", name="Make it again").click()
    assert "t2iedit mixdq quantize" in page.locator("#quantise-command").inner_text()


# Everywhere.


@pytest.mark.parametrize("tab", ["Generate", "Inspect", "Sweep", "Learn", "Quantise"])
def test_a_phones_width_needs_no_scrolling_sideways(visitor, tab):
    page = visitor(viewport={"width": 390, "height": 844})
    page.get_by_role("button", name="Remove the red circle").click()
    says(page, "Done.")
    if not page.get_by_role("tab", name=tab).is_visible():
        page.locator("#tabs .overflow-menu > button").click()
    page.get_by_role("tab", name=tab).or_(
        page.get_by_role("button", name=tab, exact=True)
    ).first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_light_and_dark_follow_the_visitor(visitor):
    grounds = [
        visitor(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    light, dark = (sum(map(int, text[4:-1].split(","))) for text in grounds)
    assert light > 600 and dark < 200


def test_the_way_to_a_picture_by_keyboard_alone(page):
    page.locator("#prompt textarea").focus()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("a red dog")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "generate":
            break
    page.keyboard.press("Enter")
    says(page, "Done.")
