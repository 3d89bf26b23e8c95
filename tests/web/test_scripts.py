"""Every test fails when a script of this extension fails; here one does."""

from tests.web.comfy_page import OURS


def test_an_error_in_a_script_of_ours_is_noticed(open_page):
    comfy = open_page()
    script = {"content_type": "text/javascript", "body": "throw new Error('seen')"}
    comfy.page.route(f"**{OURS}broken.js", lambda route: route.fulfill(**script))
    with comfy.page.expect_event("pageerror"):
        comfy.page.evaluate(
            "src => document.head.append(Object.assign(document.createElement('script'), {src}))",
            f"{OURS}broken.js",
        )
    assert ["seen" in error for error in comfy.script_errors] == [True]
    comfy.script_errors.clear()
