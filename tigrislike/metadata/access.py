"""Access keys: their secrets sealed at rest, their scope, the root key, and the rotation of the master key.

A key belongs to an owner and reaches either all of that owner's buckets or one bucket by name. It is found by its id,
by owner and by bucket; deleting a bucket deletes the keys scoped to it, so they never open a later bucket of its name.
"""

from __future__ import annotations

import functools
import hashlib
import secrets

import msgspec

from .context import Context
from .errors import InvalidArgument, MasterKeyRotating, NoSuchAccessKey, WrongMasterKey
from .kv.engine import Transaction
from .records import AccessKey, AccessRecord, MasterState
from .records import access as codec
from .records import master_state as state_codec
from .secrets import MasterKey

ROOT_OWNER = "root"
_MAX_KEY_ID = 128

ROTATE_BATCH = 100
"""Secrets that one transaction of a rotation seals anew."""


@functools.lru_cache(4096)
def canonical_id(owner: str) -> str:
    """An owner's canonical user id, as S3 shows it: 64 hexadecimal digits."""
    return hashlib.sha256(owner.encode()).hexdigest()


def generate_pair() -> tuple[str, str]:
    """A fresh key id and secret, in the form that Tigris gives them."""
    return f"tid_{secrets.token_hex(12)}", f"tsec_{secrets.token_urlsafe(33)}"


def check_pair(key_id: str, secret: str) -> None:
    """Refuse a pair that clients could not use: the id is 3 to 128 printable characters without ``/``, the secret 8 to
    256 printable characters. Raises InvalidArgument."""
    printable = key_id.isascii() and key_id.isprintable() and " " not in key_id
    if not (3 <= len(key_id) <= _MAX_KEY_ID and printable and not set(key_id) & set("/,=")):
        raise InvalidArgument(
            "AccessKeyId", key_id, "An access key id has 3 to 128 printable ASCII characters, none of them ' /,='"
        )
    if not (8 <= len(secret) <= 256 and secret.isprintable()):
        raise InvalidArgument("SecretAccessKey", "", "A secret access key has 8 to 256 printable characters")


def _seal(master: MasterKey, key: AccessKey) -> AccessRecord:
    sealed = master.seal(key.secret.encode(), key.key_id.encode())
    return AccessRecord(key.key_id, key.owner, key.bucket, key.created_ns, master.id, sealed, key.root, key.admin)


def check_sealed_with(master: MasterKey, used: bytes, what: str) -> None:
    """Refuse to open `what`, where another master key than this one was `used`. Raises WrongMasterKey."""
    if used != master.id:
        raise WrongMasterKey(
            f"{what} is sealed with master key {used.hex()}, "
            f"this node has {master.id.hex()}: restart it with the new key"
        )


def _unseal(master: MasterKey, record: AccessRecord) -> AccessKey:
    check_sealed_with(master, record.master, f"access key {record.key_id}")
    secret = master.unseal(record.sealed, record.key_id.encode()).decode()
    return AccessKey(
        record.key_id, secret, record.owner, record.bucket, record.created_ns, record.root, record.admin or record.root
    )


async def master_in_force(tr: Transaction, ctx: Context, master: MasterKey) -> None:
    """Refuse to seal anything while a rotation runs, or with a key that is no longer in force."""
    state = await check_in_force(tr, ctx, master)
    if state is not None and state.successor:
        raise MasterKeyRotating


async def check_in_force(tr: Transaction, ctx: Context, master: MasterKey) -> MasterState | None:
    """The master key's state, which `master` is in force by (None: no key is yet). Raises WrongMasterKey."""
    raw = await tr.get(ctx.keys.master)
    state = state_codec.decode(raw) if raw is not None else None
    if state is not None and state.current != master.id:
        raise WrongMasterKey(f"master key {master.id.hex()} is no longer in force: restart this node with the new key")
    return state


def _store(tr: Transaction, ctx: Context, master: MasterKey, key: AccessKey) -> None:
    tr.set(ctx.keys.access.key(key.key_id), codec.encode(_seal(master, key)))
    tr.set(ctx.keys.access_owned(key.owner).key(key.key_id), b"")
    if key.bucket:
        tr.set(ctx.keys.access_scoped(key.bucket).key(key.key_id), b"")


def _erase(tr: Transaction, ctx: Context, record: AccessRecord) -> None:
    tr.clear(ctx.keys.access.key(record.key_id))
    tr.clear(ctx.keys.access_owned(record.owner).key(record.key_id))
    if record.bucket:
        tr.clear(ctx.keys.access_scoped(record.bucket).key(record.key_id))
    tr.bump_metadata_version()


async def create_key(tr: Transaction, ctx: Context, master: MasterKey, key: AccessKey) -> AccessKey:
    """Store a new key pair. Raises InvalidArgument if the id is taken, MasterKeyRotating, WrongMasterKey."""
    taken = tr.get(ctx.keys.access.key(key.key_id))
    await master_in_force(tr, ctx, master)
    if await taken is not None:
        raise InvalidArgument("AccessKeyId", key.key_id, "The access key id is taken")
    key = msgspec.structs.replace(key, created_ns=ctx.now_ns())
    _store(tr, ctx, master, key)
    return key


async def read_key(tr: Transaction, ctx: Context, master: MasterKey, key_id: str) -> AccessKey | None:
    if len(key_id) > _MAX_KEY_ID:
        return None  # anybody can send anything, such as what would be too long for a key of the database
    try:
        raw = await tr.get(ctx.keys.access.key(key_id))
    except UnicodeEncodeError:
        return None
    return _unseal(master, codec.decode(raw)) if raw is not None else None


async def delete_key(tr: Transaction, ctx: Context, key_id: str) -> None:
    """Raises NoSuchAccessKey."""
    raw = await tr.get(ctx.keys.access.key(key_id))
    if raw is None:
        raise NoSuchAccessKey(key_id)
    _erase(tr, ctx, codec.decode(raw))


async def revoke_key(tr: Transaction, ctx: Context, key_id: str) -> AccessRecord:
    """Delete a key that is not root's, and return what it was. Raises NoSuchAccessKey, InvalidArgument."""
    record = await _replaceable(tr, ctx, key_id)
    _erase(tr, ctx, record)
    return record


async def rotate_key(
    tr: Transaction, ctx: Context, master: MasterKey, key_id: str, pair: tuple[str, str], keep: bool
) -> AccessKey:
    """Store a new `pair` that may do what the key `key_id` may, and delete that one, unless it is to be kept for those
    who do not know the new one yet.

    Raises:
        NoSuchAccessKey, InvalidArgument: there is none, or it is root's. MasterKeyRotating, WrongMasterKey.
    """
    old = await _replaceable(tr, ctx, key_id)
    fresh = AccessKey(pair[0], pair[1], old.owner, old.bucket, 0, admin=old.admin)
    made = await create_key(tr, ctx, master, fresh)
    if not keep:
        _erase(tr, ctx, old)
    return made


async def _replaceable(tr: Transaction, ctx: Context, key_id: str) -> AccessRecord:
    raw = await tr.get(ctx.keys.access.key(key_id))
    if raw is None:
        raise NoSuchAccessKey(key_id)
    record = codec.decode(raw)
    if record.root:
        raise InvalidArgument(
            "AccessKeyId", key_id, "The root key is changed by starting the nodes with another one, or not at all"
        )
    return record


async def delete_scoped(tr: Transaction, ctx: Context, bucket_name: str) -> None:
    """Delete every key scoped to a bucket."""
    family = ctx.keys.access_scoped(bucket_name)
    rows = await tr.get_range(family.begin, family.end)
    reads = [tr.get(ctx.keys.access.key(family.text(row))) for row, _ in rows]
    for read in reads:
        raw = await read
        if raw is not None:
            _erase(tr, ctx, codec.decode(raw))


async def list_keys(tr: Transaction, ctx: Context, owner: str, after: str, limit: int) -> list[AccessRecord]:
    """Up to `limit` of an owner's keys (without secrets), in order of their ids, after the id `after`."""
    family = ctx.keys.access_owned(owner)
    rows = await tr.get_range(family.after(after) if after else family.begin, family.end, limit=limit)
    reads = [tr.get(ctx.keys.access.key(family.text(key))) for key, _ in rows]
    values = [await read for read in reads]
    return [codec.decode(value) for value in values if value is not None]


async def list_all_keys(tr: Transaction, ctx: Context, after: str, limit: int) -> list[AccessRecord]:
    """`list_keys` of everybody."""
    family = ctx.keys.access
    rows = await tr.get_range(family.after(after) if after else family.begin, family.end, limit=limit)
    return [codec.decode(value) for _, value in rows]


async def ensure_root(
    tr: Transaction, ctx: Context, master: MasterKey, wanted: AccessKey, given: bool
) -> tuple[AccessKey, bool]:
    """There is one root key pair. Returns it, and whether this call stored it.

    `given`: `wanted` is what the operator configured, and replaces a different one; otherwise it is a fresh pair that
    is used only if there is none yet.
    """
    pointer = await tr.get(ctx.keys.root)
    present: AccessRecord | None = None
    if pointer is not None:
        raw = await tr.get(ctx.keys.access.key(pointer.decode()))
        present = codec.decode(raw) if raw is not None else None
    if present is not None:
        key = _unseal(master, present)
        if not given or (key.key_id == wanted.key_id and key.secret == wanted.secret):
            return key, False
    await master_in_force(tr, ctx, master)
    if wanted.key_id != (present.key_id if present is not None else ""):
        other = await tr.get(ctx.keys.access.key(wanted.key_id))
        if other is not None:
            raise InvalidArgument("AccessKeyId", wanted.key_id, "The id is taken by an access key that is not root's")
    if present is not None:
        _erase(tr, ctx, present)
    key = msgspec.structs.replace(wanted, owner=ROOT_OWNER, bucket="", root=True, admin=True, created_ns=ctx.now_ns())
    _store(tr, ctx, master, key)
    tr.set(ctx.keys.root, key.key_id.encode())
    return key, True


# --- the master key


async def check_master(tr: Transaction, ctx: Context, master: MasterKey) -> None:
    """Check the master key against the database, or put its check value there if this is the first.

    Raises:
        WrongMasterKey: another key is in force.
    """
    raw = await tr.get(ctx.keys.master)
    if raw is None:
        tr.set(ctx.keys.master, state_codec.encode(MasterState(master.id, master.check_value())))
        return
    state = state_codec.decode(raw)
    if state.current == master.id and master.matches(state.check):
        return
    if state.successor == master.id:
        raise WrongMasterKey(
            f"the rotation to master key {master.id.hex()} has not finished: "
            f"run it again with the old key ({state.current.hex()}) before starting with the new one"
        )
    raise WrongMasterKey(
        f"this database was made with master key {state.current.hex()}, not {master.id.hex()}: give the right one"
    )


async def begin_rotation(tr: Transaction, ctx: Context, old: MasterKey, new: MasterKey) -> None:
    """Announce `new` as the successor of `old`. Repeating it goes on with an interrupted rotation.

    Raises:
        WrongMasterKey: `old` is not in force, or a rotation to yet another key is under way.
    """
    raw = await tr.get(ctx.keys.master)
    state = state_codec.decode(raw) if raw is not None else None
    if state is None or state.current != old.id:
        raise WrongMasterKey(f"master key {old.id.hex()} is not the one in force")
    if state.successor and state.successor != new.id:
        raise WrongMasterKey(f"a rotation to master key {state.successor.hex()} is under way: finish it first")
    tr.set(ctx.keys.master, state_codec.encode(MasterState(old.id, state.check, new.id, new.check_value())))


async def rotate_some(tr: Transaction, ctx: Context, old: MasterKey, new: MasterKey, after: str) -> str:
    """Seal a batch of secrets anew, those after the key id `after`; returns where to go on, empty at the end."""
    family = ctx.keys.access
    rows = await tr.get_range(family.after(after) if after else family.begin, family.end, limit=ROTATE_BATCH)
    changed = False
    for key, value in rows:
        record = codec.decode(value)
        if record.master != new.id:
            tr.set(key, codec.encode(_seal(new, _unseal(old, record))))
            changed = True
    if changed:
        tr.bump_metadata_version()
    return family.text(rows[-1][0]) if len(rows) == ROTATE_BATCH else ""


async def end_rotation(tr: Transaction, ctx: Context, old: MasterKey, new: MasterKey) -> None:
    """Put `new` in force, every secret being sealed with it: none is made while a rotation runs."""
    raw = await tr.get(ctx.keys.master)
    state = state_codec.decode(raw) if raw is not None else None
    if state is None or state.current != old.id or state.successor != new.id:
        raise WrongMasterKey("the rotation was finished or replaced by another process")
    tr.set(ctx.keys.master, state_codec.encode(MasterState(new.id, state.successor_check)))
    tr.bump_metadata_version()
