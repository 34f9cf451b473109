"""Credentials in a storage URI stay out of what people read."""

import pytest

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import Folder, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SE%2FCRET@bucket/study?scheme=http", "s3://***@bucket/study?scheme=http"),
        ("sweep demo --out 's3://KEY:SECRET@b/s' --seed 1", "sweep demo --out 's3://***@b/s' --seed 1"),
        ("abfs://c/s?sas_token=abc&x=1", "abfs://c/s?sas_token=***&x=1"),
        ("s3://bucket/mail@home", "s3://bucket/mail@home"),
        ("/data/a@b/study", "/data/a@b/study"),
    ],
)
def test_credentials_are_masked_and_nothing_else(text, shown):
    assert without_secrets(text) == shown


def test_messages_name_a_folder_without_its_credentials():
    assert Folder("s3://KEY:SECRET@bucket/study?region=eu-west-1").shown == "s3://***@bucket/study?region=eu-west-1"
    with pytest.raises(UserError, match="Cannot open storage") as told:
        Folder("s3://KEY:SECRET@bucket/study?nonsense=1")
    assert "SECRET" not in str(told.value)
