import pytest

from compressor.batch.secrets import without_secrets


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "x_api_key"])
def test_the_value_of_a_telling_variable_is_hidden(name):
    assert without_secrets("sent abcdef12!", {name: "abcdef12"}) == "sent ***!"


def test_other_variables_and_short_values_are_left():
    assert without_secrets("in /home/me a b", {"HOME": "/home/me", "TOKEN": "a"}) == (
        "in /home/me a b"
    )


def test_passwords_in_addresses_are_hidden():
    told = without_secrets("https://me:secret@host/x?token=abc&b=1 https://host/y", {})
    assert told == "https://***@host/x?token=***&b=1 https://host/y"
