"""What schemathesis asks of the admin API. Run by ../test_schemathesis.py with schemathesis' own Python.

Arguments: the case, then the node's URL; an admin key is in the environment.
"""

import os
import sys

import schemathesis
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import HealthCheck, Phase, given, seed, settings

PREFIX = "/_tigrislike/admin/v1"


class Signer(SigV4Auth):
    """S3's paths are signed as they are sent."""

    def _normalize_url_path(self, path):
        return path


class Signature:
    """An auth of requests: signs each as it is sent."""

    def __init__(self, key_id, secret):
        self.credentials = Credentials(key_id, secret)

    def __call__(self, prepared):
        body = prepared.body or b""
        request = AWSRequest(prepared.method, prepared.url, data=body)
        request.headers["Host"] = prepared.url.split("/")[2]
        Signer(self.credentials, "s3", "auto").add_auth(request)
        prepared.headers.update(dict(request.headers.items()))
        return prepared


def _schema(url):
    import requests

    signed = Signature(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    document = requests.get(f"{url}{PREFIX}/openapi.json", auth=signed, timeout=30)
    document.raise_for_status()
    return schemathesis.openapi.from_dict(document.json()), signed


def everything(url, chosen, examples):
    """Each operation, with arguments that its description allows and with others: what is answered is described."""
    schema, signed = _schema(url)
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Exception as error:  # nothing of an operation can be made wrong
                print(f"{operation.label} {mode}: {error}")
                continue

            @seed(int(chosen))
            @settings(
                max_examples=int(examples),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(case=strategy)
            def ask(case):
                nonlocal asked
                asked += 1
                response = case.call(base_url=f"{url}{PREFIX}", auth=signed, timeout=30)
                assert response.status_code < 500, (case.as_curl_command(), response.text)
                case.validate_response(
                    response,
                    checks=[
                        schemathesis.checks.not_a_server_error,
                        schemathesis.specs.openapi.checks.status_code_conformance,
                        schemathesis.specs.openapi.checks.content_type_conformance,
                        schemathesis.specs.openapi.checks.response_schema_conformance,
                    ],
                )

            try:
                ask()
            except Exception as error:
                if "Unsatisfiable" in type(error).__name__:
                    continue
                raise
    print(f"asked {asked} times")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
