"""Access keys: who has which, made, rotated and revoked. A secret is on one page, once."""

from __future__ import annotations

from typing import Any

from ..page import Context, Page, Visit, Went, segment, url


async def listed(visit: Visit) -> Context:
    page = await visit.call("keys", cursor=visit.query.get("cursor"), limit=100)
    return {"page": page, "first": "cursor" in visit.query}


async def ask_create(visit: Visit) -> Context:
    return {
        "question": "Make an access key?",
        "consequence": "Its secret is shown once, on the next page.",
        "to": url("/keys/create"),
        "fields": {},
        "button": "Make the key",
        "kind": "primary",
        "back": url("/keys"),
    }


async def create(visit: Visit) -> Context:
    made = await visit.call("create_key", bucket=visit.form.get("bucket", "").strip(), admin="admin" in visit.form)
    return _made(made, "A key was made")


async def ask_rotate(visit: Visit) -> Context:
    key_id = visit.params["key_id"]
    return {
        "question": f"Rotate key {key_id}?",
        "consequence": "A new pair with the same rights takes its place, and the old one stops working at once."
        + _own(visit),
        "to": url(f"/keys/{segment(key_id)}/rotate"),
        "fields": {},
        "button": "Rotate",
        "kind": "primary",
        "back": url("/keys"),
    }


async def rotate(visit: Visit) -> Context:
    made = await visit.call("rotate_key", key_id=visit.params["key_id"], keep="keep" in visit.form)
    return _made(made, f"A key in place of {visit.params['key_id']}")


async def ask_revoke(visit: Visit) -> Context:
    key_id = visit.params["key_id"]
    return {
        "question": f"Revoke key {key_id}?",
        "consequence": f"Whoever uses it is refused from now on, and links made with it stop working.{_own(visit)}",
        "to": url(f"/keys/{segment(key_id)}/revoke"),
        "fields": {},
        "button": "Revoke",
        "kind": "danger",
        "back": url("/keys"),
    }


async def revoke(visit: Visit) -> Went:
    key_id = visit.params["key_id"]
    await visit.call("revoke_key", key_id=key_id)
    return Went(url("/keys"), f"Key {key_id} was revoked.")


def _own(visit: Visit) -> str:
    own = visit.session is not None and visit.session.key_id == visit.params["key_id"]
    return " You are signed in with it, and will have to sign in with another one." if own else ""


def _made(made: Any, title: str) -> Context:
    return {"made": made, "title": title}


PAGES = [
    Page("GET", "/keys", "keys.html", listed, nav="Keys"),
    Page("GET", "/keys/create", "ask-create-key.html", ask_create),
    Page("POST", "/keys/create", "key-made.html", create),
    Page("GET", "/keys/{key_id}/rotate", "ask-rotate-key.html", ask_rotate),
    Page("POST", "/keys/{key_id}/rotate", "key-made.html", rotate),
    Page("GET", "/keys/{key_id}/revoke", "ask.html", ask_revoke),
    Page("POST", "/keys/{key_id}/revoke", "", revoke),
]
