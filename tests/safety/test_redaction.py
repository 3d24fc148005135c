"""Secrets are taken out of a run's options by their name or their form, and ordinary settings stay."""

from __future__ import annotations

import inspect

import pytest

import dipo_lightning
from dipo_lightning.safety.redaction import REMOVED, without_secrets

SECRETS = {
    "api_key": "abc",
    "apiKey": "abc",
    "WANDB_API_KEY": "abc",
    "aws_access_key_id": "AKIX",
    "aws_secret_access_key": "x",
    "access_token": "x1",
    "hf_token": "y",
    "slack_token": "z",
    "client_secret": "x",
    "password": 12345,
    "db-password": "x",
    "private_key": "k",
    "tokens": ["first-secret"],
    "auth_key": "abc",
    "openai_key": "9f8e7d6c5b4a3210ffee",
}

ORDINARY = {
    "max_new_tokens": 48,
    "verbmem_tokens": "64",
    "forget_tokens": "answer",
    "pad_token": "<pad>",
    "eos_token_id": 2,
    "tokenizer": "org/name",
    "stop_tokens": ["</s>"],
    "image_token": "img",
    "monitor": "a/b",
    "author": "me",
    "key": "value",
    "token": None,
    "url": "https://example.org/a?step=10",
    "prompt": "Say the secret word, and the token of love: none",
    "optimizer": {"lr": 1e-3},
    "tokens": 8,
    "authors": "Ann",
    "secretary": "Bob",
    "cache": "package:a/b",
    "sort_key": "index",
    "system_prompt": "Basic knowledge only: answer in two words.",
}

IN_TEXT = {
    "https://user:hunter2@host/db": "hunter2",
    "https://0123456789abcdef0123@host/repo.git": "0123456789abcdef0123",
    "https://host/x?access_token=abc123def&step=3": "abc123def",
    "You are helpful. Your API key is 9f8e7d6c5b4a; keep it.": "9f8e7d6c5b4a",
    "Use token: tk12345678": "tk12345678",
    "Authorization: Bearer abcdefgh12345678": "abcdefgh12345678",
    "AKIAABCDEFGHIJKLMNOP is the id": "AKIAABCDEFGHIJKLMNOP",
    "https://hooks.slack.com/services/T012/B345/abcDEF678": "abcDEF678",
    "https://discord.com/api/webhooks/1234/abc-DEF": "abc-DEF",
    "Authorization: Basic dXNlcjpwYXNzd29yZA==": "dXNlcjpwYXNzd29yZA",
    "Endpoint=sb://x/;SharedAccessKey=q1w2e3r4t5y6": "q1w2e3r4t5y6",
    "AccountName=x;AccountKey=q1w2e3r4t5y6==": "q1w2e3r4t5y6",
    "sk_live_0123456789abcd": "0123456789abcd",
    "hub hf_" + "a" * 30: "a" * 30,
    "github_pat_" + "b" * 30: "b" * 30,
    "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----": "abc",
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_name_hides_its_value(name: str) -> None:
    value = SECRETS[name]
    expected = [REMOVED] if isinstance(value, list) else REMOVED
    assert without_secrets({"logger": [{"init_args": {name: value}}]}) == {"logger": [{"init_args": {name: expected}}]}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_setting_stays(name: str) -> None:
    assert without_secrets({name: ORDINARY[name]}) == {name: ORDINARY[name]}


def test_no_option_of_the_package_looks_like_a_secret() -> None:
    names = {
        name
        for public in dipo_lightning.__all__
        if isinstance(cls := getattr(dipo_lightning, public), type)
        for base in cls.__mro__
        if base.__module__.startswith("dipo_lightning") and "__init__" in vars(base)
        for name in inspect.signature(base.__init__).parameters
    }
    assert {"forget_tokens", "pretrained"} <= names
    assert without_secrets(dict.fromkeys(names, "answer")) == dict.fromkeys(names, "answer")


@pytest.mark.parametrize("text", IN_TEXT)
def test_a_secret_in_a_text_goes_and_the_text_stays(text: str) -> None:
    shown = without_secrets({"system_prompt": text})["system_prompt"]
    assert IN_TEXT[text] not in shown
    assert REMOVED in shown
