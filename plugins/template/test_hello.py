from t2iedit_hello import Hello

from t2iedit.testing import check_edit


def test_hello_keeps_the_contract():
    check_edit(Hello)
