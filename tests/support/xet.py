"""The write side of Xet, the Hub's storage for large files, as a part of the loopback Hub.

`hf_xet` cuts files into chunks and sends them in xorbs (blocks of chunks), then a shard, which says
which chunks of which xorbs a file is made of. Clients need `HF_XET_XORB_COMPRESSION_POLICY=none`:
Python cannot decompress their chunks.
"""

import struct
import time

HASH = 32
ENTRY = 48  # bytes of every record in a shard
HAS_RANGE_HASHES, HAS_SHA256 = 1 << 31, 1 << 30


def to_hex(digest: bytes) -> str:
    """The text of a hash: four little-endian numbers of 64 bits."""
    return b"".join(digest[start : start + 8][::-1] for start in range(0, HASH, 8)).hex()


def chunks_of(xorb: bytes) -> list[bytes]:
    """The chunks of a xorb. Each has 8 bytes before it: version, size, compression and size as it was."""
    found, position = [], 0
    while position < len(xorb):
        size = int.from_bytes(xorb[position + 1 : position + 4], "little")
        if xorb[position + 4] != 0:
            raise ValueError("the chunks are compressed")
        position += 8 + size
        found.append(xorb[position - size : position])
    return found


def files_of(shard: bytes, xorbs: dict[str, bytes]) -> dict[str, bytes]:
    """The files that a shard describes, by their SHA-256."""
    files, position = {}, ENTRY

    def read() -> tuple[bytes, int, int, int, int]:
        nonlocal position
        position += ENTRY
        return struct.unpack_from("<32s4I", shard, position - ENTRY)

    while (header := read())[0] != b"\xff" * HASH:
        _, flags, count, _, _ = header
        parts = []
        for _ in range(count):
            xorb, _, _, first, last = read()
            parts += chunks_of(xorbs[to_hex(xorb)])[first:last]
        for _ in range(count if flags & HAS_RANGE_HASHES else 0):
            read()
        files[to_hex(read()[0])] = b"".join(parts)
    return files


class XetRoutes:
    """The requests of `hf_xet`, as a part of the loopback Hub's handler."""

    def xet_token(self, account, kind: str, repo: str, revision: str):
        self._check_write(account, self._find_repo(account, kind, repo))
        url, token, expires = f"{self.hub.url}/xet", f"xet_{self._token()}", int(time.time()) + 900
        return 200, {"casUrl": url, "accessToken": token, "exp": expires}, {}

    def xet_chunk(self, account):
        return 404, {}, {}  # no other file has it

    def xet_grant(self, account, xorb: str):
        if xorb in self.hub.xorbs:
            return 200, {}, {}
        url = f"{self.hub.url}/xet-storage/{xorb}?signature={self._token()}"  # to be kept secret too
        return 201, {"id": "1", "method": "PUT", "url": url, "headers": {}}, {}

    def xet_put(self, account, xorb: str):
        self.hub.xorbs_sent[xorb] = self.body
        return 200, {}, {}

    def xet_commit(self, account, xorb: str):
        if xorb not in self.hub.xorbs_sent:
            return 404, {}, {}
        self.hub.xorbs[xorb] = self.hub.xorbs_sent[xorb]
        return 200, {"was_inserted": True}, {}

    def xet_xorb(self, account, xorb: str):
        self.hub.xorbs[xorb] = self.body
        return 200, {"was_inserted": True}, {}

    def xet_shard(self, account, version: str):
        try:
            self.hub.large_files |= files_of(self.body, self.hub.xorbs)
        except KeyError as error:
            return 400, {"error": f"There is no xorb {error}."}, {}
        return 200, {"result": 1, "type": "result"}, {}


XET_ROUTES = [
    (
        "GET",
        r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)/xet-write-token/(?P<revision>[^/]+)",
        XetRoutes.xet_token,
    ),
    ("GET", r"/xet/v1/chunks/default/\w+", XetRoutes.xet_chunk),
    ("POST", r"/xet/v1/xorb-grants/default/(?P<xorb>\w+)", XetRoutes.xet_grant),
    ("PUT", r"/xet-storage/(?P<xorb>\w+)", XetRoutes.xet_put),
    ("POST", r"/xet/v1/xorb-commits/default/(?P<xorb>\w+)/grant/1", XetRoutes.xet_commit),
    ("POST", r"/xet/v1/xorbs/default/(?P<xorb>\w+)", XetRoutes.xet_xorb),  # where grants are unknown
    ("POST", r"/xet/(?P<version>v1|v2)/shards", XetRoutes.xet_shard),
]
