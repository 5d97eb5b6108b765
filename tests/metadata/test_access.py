"""Access keys, the root key, and the master key that seals them."""

import asyncio
import stat

import pytest

from tests.kv.memory_engine import MemoryEngine
from tests.metadata.world import MASTER, both_engines, dump, found, play
from tigrislike.metadata import MasterKey, WrongMasterKey, access
from tigrislike.metadata.errors import FormatTooNew, InvalidArgument, MasterKeyRotating, NoSuchAccessKey
from tigrislike.metadata.records import Cluster
from tigrislike.metadata.records import cluster as cluster_codec

OTHER = MasterKey(bytes(32))


@both_engines
def test_a_key_is_found_with_its_secret_which_is_not_stored_in_clear(kind, tmp_path):
    async def story(metadata):
        key = await metadata.create_access_key("me", "photos")
        await metadata.refresh()
        for _ in range(2):
            assert await metadata.access_key(key.key_id) == key
        assert key.key_id.startswith("tid_")
        assert key.secret.startswith("tsec_")
        for value in (await dump(metadata)).values():
            assert key.secret.encode() not in value

    play(kind, tmp_path, story)


@both_engines
def test_unknown_keys(kind, tmp_path):
    async def story(metadata):
        assert await metadata.access_key("nope") is None
        assert await metadata.access_key("\ud800") is None
        with pytest.raises(NoSuchAccessKey):
            await metadata.delete_access_key("nope")

    play(kind, tmp_path, story)


@both_engines
def test_a_deleted_key_is_gone_for_every_process(kind, tmp_path):
    async def story(metadata):
        key = await metadata.create_access_key("me")
        await metadata.refresh()
        await metadata.access_key(key.key_id)
        other = await found(metadata.engine)
        await other.delete_access_key(key.key_id)
        await metadata.refresh()
        assert await metadata.access_key(key.key_id) is None
        assert await metadata.list_access_keys("me") == []

    play(kind, tmp_path, story)


@both_engines
def test_keys_are_listed_by_owner_in_pages(kind, tmp_path):
    async def story(metadata):
        ids = sorted([(await metadata.create_access_key("me")).key_id for _ in range(5)])
        await metadata.create_access_key("you")
        assert [record.key_id for record in await metadata.list_access_keys("me")] == ids
        assert [record.key_id for record in await metadata.list_access_keys("me", ids[1], 2)] == ids[2:4]

    play(kind, tmp_path, story)


@both_engines
def test_given_pairs(kind, tmp_path):
    async def story(metadata):
        await metadata.create_access_key("me", key_id="AKIAEXAMPLE", secret="abcdefgh/+=")
        with pytest.raises(InvalidArgument):
            await metadata.create_access_key("me", key_id="AKIAEXAMPLE", secret="abcdefgh")
        for key_id, secret in [("ab", "abcdefgh"), ("a/b", "abcdefgh"), ("a b", "abcdefgh"), ("abc", "short")]:
            with pytest.raises(InvalidArgument):
                await metadata.create_access_key("me", key_id=key_id, secret=secret)

    play(kind, tmp_path, story)


@both_engines
def test_there_is_one_root_key_and_a_configured_one_replaces_it(kind, tmp_path):
    async def story(metadata):
        made, created = await metadata.ensure_root()
        assert created
        assert made.root
        assert await metadata.ensure_root() == (made, False)
        given, created = await metadata.ensure_root("ROOTKEY", "root secret")
        assert (given.key_id, given.secret, created) == ("ROOTKEY", "root secret", True)
        await metadata.refresh()
        assert await metadata.access_key(made.key_id) is None
        assert await metadata.ensure_root("ROOTKEY", "root secret") == (given, False)
        changed, created = await metadata.ensure_root("ROOTKEY", "other secret")
        assert (changed.secret, created) == ("other secret", True)
        assert (await metadata.access_key("ROOTKEY")).secret == "other secret"
        assert await metadata.ensure_root() == (changed, False)
        await metadata.create_access_key("me", key_id="TAKEN", secret="abcdefgh")
        with pytest.raises(InvalidArgument):
            await metadata.ensure_root("TAKEN", "abcdefgh")

    play(kind, tmp_path, story)


# --- the master key


@both_engines
def test_a_wrong_master_key_is_noticed_at_open(kind, tmp_path):
    async def story(metadata):
        await found(metadata.engine)
        with pytest.raises(WrongMasterKey, match="give the right one"):
            await found(metadata.engine, master=OTHER)

    play(kind, tmp_path, story)


@both_engines
def test_rotation_seals_every_secret_anew(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(access, "ROTATE_BATCH", 3)

    async def story(metadata):
        keys = [await metadata.create_access_key("me") for _ in range(8)]
        stale = await found(metadata.engine)
        token_key = metadata.derive_key("tokens")
        await metadata.rotate_master_key(MASTER)  # to itself: nothing to do
        await metadata.rotate_master_key(OTHER)
        assert metadata.derive_key("tokens") != token_key
        for key in keys:
            assert await metadata.access_key(key.key_id) == key
        await metadata.create_access_key("me")
        reopened = await found(metadata.engine, master=OTHER)
        assert await reopened.access_key(keys[0].key_id) == keys[0]
        with pytest.raises(WrongMasterKey):
            await found(metadata.engine)
        with pytest.raises(WrongMasterKey, match="restart"):
            await stale.access_key(keys[0].key_id)
        with pytest.raises(WrongMasterKey, match="restart"):
            await stale.create_access_key("me")
        with pytest.raises(WrongMasterKey, match="not the one in force"):
            await stale.rotate_master_key(OTHER)

    play(kind, tmp_path, story)


@both_engines
def test_an_interrupted_rotation_is_finished_by_running_it_again(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(access, "ROTATE_BATCH", 3)

    async def story(metadata):
        keys = [await metadata.create_access_key("me") for _ in range(8)]
        ctx = metadata.context
        await metadata.engine.transact(access.begin_rotation, ctx, MASTER, OTHER)
        await metadata.engine.transact(access.rotate_some, ctx, MASTER, OTHER, "")
        with pytest.raises(MasterKeyRotating):
            await metadata.create_access_key("me")
        with pytest.raises(WrongMasterKey, match="has not finished"):
            await found(metadata.engine, master=OTHER)
        with pytest.raises(WrongMasterKey, match="under way"):
            await metadata.rotate_master_key(MasterKey.generate())
        again = await found(metadata.engine)
        await again.rotate_master_key(OTHER)
        for key in keys:
            assert await again.access_key(key.key_id) == key
        with pytest.raises(WrongMasterKey, match="finished or replaced"):
            await metadata.engine.transact(access.end_rotation, ctx, MASTER, OTHER)

    play(kind, tmp_path, story)


@both_engines
def test_a_secret_moved_to_another_key_does_not_open(kind, tmp_path):
    async def story(metadata):
        one = await metadata.create_access_key("me", key_id="ONE", secret="abcdefgh")
        await metadata.create_access_key("me", key_id="TWO", secret="ABCDEFGH")
        family = metadata.context.keys.access

        async def swap(tr):
            tr.set(family.key("TWO"), (await tr.get(family.key("ONE"))).replace(b"ONE", b"TWO"))

        await metadata.engine.transact(swap)
        assert await metadata.access_key("ONE") == one
        with pytest.raises(WrongMasterKey):
            await metadata.access_key("TWO")

    play(kind, tmp_path, story)


def test_a_newer_format_is_refused():
    async def main():
        engine = MemoryEngine()
        metadata = await found(engine)

        async def advance(tr):
            tr.set(metadata.context.keys.cluster, cluster_codec.encode(Cluster(99, 0, b"")))

        await engine.transact(advance)
        with pytest.raises(FormatTooNew):
            await found(engine)
        await engine.close()

    asyncio.run(main())


def test_opening_again_keeps_the_clusters_identity():
    async def main():
        engine = MemoryEngine()
        first, second = await found(engine), await found(engine)
        assert first.cluster == second.cluster
        await second.ping()
        assert second.now_ns() == engine.now_ns()
        await engine.close()

    asyncio.run(main())


# --- where the key comes from


@pytest.mark.parametrize("text", ["00" * 32, "A" * 43 + "=", " " + "0f" * 32 + "\n"])
def test_keys_as_text(text):
    assert len(MasterKey.parse(text).id) == 8


@pytest.mark.parametrize("text", ["", "00" * 31, "zz" * 32, "A" * 40, "ü" * 32, "not a key"])
def test_text_that_is_no_key(text):
    with pytest.raises(WrongMasterKey) as caught:
        MasterKey.parse(text)
    assert not text or text not in str(caught.value)


def test_a_key_has_32_bytes():
    with pytest.raises(WrongMasterKey):
        MasterKey(b"short")


def test_the_key_file_is_made_once_and_private(tmp_path):
    path = tmp_path / "master.key"
    with pytest.raises(WrongMasterKey, match="does not exist"):
        MasterKey.load(None, path, create=False)
    key = MasterKey.load(None, path, create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert MasterKey.load(None, path, create=True).id == key.id
    assert MasterKey.create_file(path).id == key.id  # lost the race: reads the winner's
    assert [entry.name for entry in tmp_path.iterdir()] == ["master.key"]
    assert MasterKey.load("00" * 32, path, create=True).id == OTHER.id
    with pytest.raises(WrongMasterKey, match="no master key"):
        MasterKey.load(None, None, create=True)
    path.write_text("rubbish")
    with pytest.raises(WrongMasterKey):
        MasterKey.load(None, path, create=True)


def test_keys_derived_for_different_purposes_differ_and_the_repr_shows_none():
    assert len({OTHER.derive("a"), OTHER.derive("b"), MASTER.derive("a")}) == 3
    assert repr(OTHER) == f"MasterKey(id={OTHER.id.hex()})"


def test_a_damaged_secret_does_not_open():
    sealed = OTHER.seal(b"text", b"owner")
    assert OTHER.unseal(sealed, b"owner") == b"text"
    for wrong in (b"", sealed[:-1], bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(WrongMasterKey):
            OTHER.unseal(wrong, b"owner")
    assert not OTHER.matches(sealed)
    assert OTHER.matches(OTHER.check_value())
