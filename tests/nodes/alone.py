"""Tests that can't hold of several servers which are taken for one (`--fleet`), each with its reason."""

LOOKS_INSIDE = "looks into one server's process, folder or log"
ENDS_IT = "ends the server: `python -m tests.chaos --fleet` ends one of three"
EACH_COUNTS = "--max-calls bounds the calls of each server, not of all"
STARTS_OTHERS = "starts no server, or by commands of its own"
OWN_ANSWERS = "HAProxy answers /ready and /metrics itself: 404, ask each server"
NO_CA = "the certificate is HAProxy's: the servers have none to hand out"

# By the beginning of their names.
ALONE = {
    "tests/clients/test_restart.py": ENDS_IT,
    "tests/clients/test_faults.py::test_nothing_is_done_twice_or_left_behind": LOOKS_INSIDE,
    "tests/clients/test_examples.py::test_a_webhook_that_is_forged_altered_or_old_is_refused": LOOKS_INSIDE,
    "tests/clients/test_examples.py::test_several_apps_have_keys_of_their_own": STARTS_OTHERS,
    "tests/clients/test_offline_box.py": STARTS_OTHERS,
    "tests/clients/test_trust.py": STARTS_OTHERS,
    "tests/clients/test_chromium.py::test_chromium": STARTS_OTHERS,
    "tests/clients/test_takeover_snippets.py": NO_CA,
    "tests/api/test_playground.py::test_nothing_from_elsewhere_may_run_in_a_page[/trust/ca.pem]": NO_CA,
    "tests/api/test_playground.py::test_the_ca_is_handed_out_and_never_its_key": NO_CA,
    "tests/api/test_schemathesis.py::test_nothing_is_wrong_with_our_own": OWN_ANSWERS,
    "tests/api/test_overload.py": f"{LOOKS_INSIDE}; {EACH_COUNTS}",
}


def reason(name: str) -> str:
    """Return why a test, by its name, can't hold of several servers; "" if it has to."""
    return next((why for begin, why in ALONE.items() if name.startswith(begin)), "")
