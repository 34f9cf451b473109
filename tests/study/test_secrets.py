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
        ("s3://KEY:SE/CR+ET@bucket/study", "s3://***@bucket/study"),
        ("s3://KEY:/SE/CRET/@bucket/a@b?scheme=http", "s3://***@bucket/a@b?scheme=http"),
        ("open 's3://KEY:SE/CRET@b/s', then 's3://K:S/T@c'", "open 's3://***@b/s', then 's3://***@c'"),
        ("s3://KEY:SE@CRET@bucket/s", "s3://***@bucket/s"),
        ("s3://KEY:SE/CR@ET@bucket/s", "s3://***@bucket/s"),
        ("s3://KEY:S@bucket:9000/a@b", "s3://***@bucket:9000/a@b"),
        ("s3://bucket:9000/a@b", "s3://bucket:9000/a@b"),
        ("s3://KEY:1234/CRET@bucket/s", "s3://***@bucket/s"),
        ("s3://bucket/a:b/c@d", "s3://bucket/a:b/c@d"),
        ("s3://b/s?endpoint_override=localhost:9000&x=a/b@c", "s3://b/s?endpoint_override=localhost:9000&x=a/b@c"),
        ("s3://b/s?Secret_Key=AB/C+d&x=1", "s3://b/s?Secret_Key=***&x=1"),
        ("AWS_SECRET_ACCESS_KEY=SE/CRET kdtvit-ray sweep", "AWS_SECRET_ACCESS_KEY=*** kdtvit-ray sweep"),
        ('{"aws_secret_access_key": "SE/CRET", "b": 1}', '{"aws_secret_access_key": "***", "b": 1}'),
        ("aws_session_token: T0KEN, region: x", "aws_session_token: ***, region: x"),
        ("SecretAccessKey=SE/CRET", "SecretAccessKey=***"),
        ("stage key: abc, secret: no", "stage key: abc, secret: no"),
    ],
)
def test_credentials_are_masked_and_nothing_else(text, shown):
    assert without_secrets(text) == shown


def test_messages_name_a_folder_without_its_credentials():
    assert Folder("s3://KEY:SECRET@bucket/study?region=eu-west-1").shown == "s3://***@bucket/study?region=eu-west-1"
    with pytest.raises(UserError, match="Cannot open storage") as told:
        Folder("s3://KEY:SECRET@bucket/study?nonsense=1")
    assert "SECRET" not in str(told.value)
