"""Webhooks, received and checked as fal's documentation tells its users to, in Python and in JavaScript."""


def test_the_documented_python_verifier_accepts_a_result(takeover):
    [said] = takeover.clients.py("webhook.py")

    [hook] = said["received"]
    assert (hook["verified"], hook["tampered"]) == (True, False)
    assert hook["request_id"] == hook["body"]["request_id"] == said["request_id"]
    assert hook["body"]["gateway_request_id"] == said["request_id"]
    assert hook["body"]["status"] == "OK"
    assert hook["body"]["payload"]["seed"] == 7


def test_a_failed_request_is_told_with_its_error(takeover):
    [said] = takeover.clients.py("webhook.py", input={"strength": 2})

    [hook] = said["received"]
    assert hook["verified"]
    assert (hook["body"]["status"], hook["body"]["error"]) == ("ERROR", "Invalid status code: 422")
    assert hook["body"]["payload"]["detail"][0]["loc"] == ["body", "strength"]


def test_the_documented_javascript_verifier_accepts_a_result(takeover):
    [said] = takeover.clients.js("verify_webhook.mjs")

    assert (said["verified"], said["tampered"]) == (True, False)
    assert said["body"]["payload"]["seed"] == 7
