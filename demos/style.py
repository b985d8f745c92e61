"""How the page looks: its colours, its fonts, and what its layout does on a phone."""

import gradio as gr

FONT = ["Inter", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
THEME = gr.themes.Soft(
    primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO
).set(
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_padding="0",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_label_background_fill="*block_background_fill",
    block_label_background_fill_dark="*block_background_fill",
    block_label_text_color="*body_text_color_subdued",
    block_label_text_color_dark="*body_text_color_subdued",
)
CSS = """
.gradio-container {max-width: 1500px !important; width: 100% !important; margin: 0 auto !important;}
.title h1 {margin: 0 0 2px;}
.title p {margin: 0; max-width: 75ch;}
footer {opacity: .7;}
.examples button {font-weight: 500;}
.action button, .minor button {white-space: nowrap;}
.status p {margin: 0; min-height: 1.4em;}
.status progress {width: 100%; height: 6px; accent-color: var(--color-accent);}
.visit-head {align-items: center; flex-wrap: wrap;}
.visit-head > :first-child {flex: 1 0 140px;}
#visit, #pair, #cells {min-height: 0 !important;}
#visit .grid-wrap, #pair .grid-wrap, #cells .grid-wrap {min-height: 0 !important; max-height: none !important;}
#visit img, #cells img, #pair img {object-fit: contain !important;}
.caption p {margin: 0; color: var(--body-text-color-subdued); font-size: var(--text-sm);}
#visit .grid-wrap, #visit .grid-container {padding-top: 0;}
ol.chips {display: flex; flex-wrap: wrap; gap: 6px; list-style: none; margin: 0 0 8px; padding: 0;}
ol.chips li {display: flex; flex-direction: column; gap: 1px; border: 1px solid var(--border-color-primary);
  border-radius: 8px; padding: 6px 10px; margin: 0; min-width: 88px; background: var(--block-background-fill);}
ol.chips li.edited {border: 2px solid var(--color-accent);}
ol.chips small {color: var(--body-text-color-subdued); line-height: 1.35;}
ol.chips .change {color: var(--color-accent); font-size: var(--text-xs); font-weight: 600;}
ol.chips .near {border-top: 1px dotted var(--border-color-primary); margin-top: 3px; padding-top: 3px; max-width: 120px;}
.curves {display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px;}
.curves figure {margin: 0;}
.curves figcaption {display: flex; justify-content: space-between; gap: 8px; font-size: var(--text-sm);}
.curves svg {width: 100%; height: 70px; display: block; border-bottom: 1px solid var(--border-color-primary);}
.curves polyline {fill: none; stroke: var(--color-accent); stroke-width: 2; vector-effect: non-scaling-stroke;}
.curves small {color: var(--body-text-color-subdued);}
table.facts {border-collapse: collapse; width: 100%;}
table.facts th, table.facts td {text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--border-color-primary);}
table.facts tbody th {font-weight: 400;}
table.facts td {font-variant-numeric: tabular-nums;}
:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 2px;}
body.dragging::after {content: "Drop the PNG: its settings go into the controls"; position: fixed; inset: 12px; z-index: 999;
  display: grid; place-items: center; font-size: 1.4rem; border: 3px dashed var(--color-accent); border-radius: 12px;
  background: color-mix(in srgb, var(--body-background-fill) 85%, transparent); pointer-events: none;}
@media (max-width: 700px) {
  .gradio-container {padding-bottom: 84px !important;}
  .action {position: fixed !important; left: 0; right: 0; bottom: 0; z-index: 60; padding: 10px 14px !important;
    background: var(--body-background-fill); border-top: 1px solid var(--border-color-primary); flex-wrap: nowrap !important;}
}
@media (prefers-reduced-motion: reduce) {* {animation: none !important; transition: none !important;}}
"""
# A file that is dropped beside the places meant for files goes to the one that repeats a picture.
HEAD = """
<script>
(() => {
  const carries = (event) => event.dataTransfer && [...event.dataTransfer.types].includes('Files');
  const elsewhere = (event) => event.target.closest && event.target.closest('[data-testid="file-upload"], .upload-container, button:has(> input[type=file]), .takes-files');
  const mark = (on) => document.body.classList.toggle('dragging', on);
  document.addEventListener('dragover', (event) => {
    if (!carries(event) || elsewhere(event)) return mark(false);
    event.preventDefault();
    mark(true);
  });
  document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) mark(false); });
  document.addEventListener('drop', (event) => {
    mark(false);
    if (!carries(event) || elsewhere(event)) return;
    event.preventDefault();
    const input = document.querySelector('#dropped input[type=file]');
    if (!input) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
  });
})();
</script>
"""
