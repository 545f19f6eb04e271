#!/usr/bin/env python3
"""python3 folder_service.py FOLDER SOCKET: serves a folder on a unix socket until it is stopped.

The same service as the Rust one beside it, with the bounds and promises of ../folder.capnp, written with pycapnp.
"""

import asyncio
import os
import stat
import sys
from pathlib import Path

import capnp

capnp.remove_import_hook()
SCHEMA = capnp.load(str(Path(__file__).resolve().parent.parent / "folder.capnp"))

ENTRIES_MAX = 1000
ENTRIES_LOOKED_AT_MAX = 65_536
READ_BYTES_MAX = 256 << 10
HITS_MAX = 1000
LINE_BYTES_MAX = 256
LINE_BYTES_LOOKED_AT_MAX = 64 << 10
SEARCH_FILES_MAX = 10_000
SEARCH_BYTES_MAX = 64 << 20
SEARCH_DEPTH_MAX = 32
PATH_PARTS_MAX = 64
CONNECTIONS_MAX = 256


def cut(line: bytes) -> str:
    """At most so many bytes of a line, cut between characters."""
    text = line.decode("utf-8", "replace").rstrip()
    return text.encode()[:LINE_BYTES_MAX].decode("utf-8", "ignore")


class Folder(SCHEMA.Folder.Server):
    """A folder, open. Every path is walked part by part from its descriptor, and no symbolic link is followed."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self):
        os.close(self.descriptor)

    def below(self, path: str, is_folder: bool) -> int:
        """Opens what lies at `path`, below this folder; the caller closes it."""
        parts = path.split("/") if path else ["."]
        if len(parts) > PATH_PARTS_MAX:
            raise ValueError(f"'{path}': too deep")
        if path and any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise ValueError(f"'{path}': a path here has no empty parts, no '.' and no '..'")
        at = os.dup(self.descriptor)
        for i, part in enumerate(parts):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            # A pipe in the folder must not make this wait for whoever writes to it.
            flags |= os.O_DIRECTORY if is_folder or i + 1 < len(parts) else os.O_NONBLOCK
            try:
                below = os.open(part, flags, dir_fd=at)
            except OSError as error:
                raise ValueError(f"'{path}': {error.strerror}") from None
            finally:
                os.close(at)
            at = below
        return at

    def file(self, path: str):
        descriptor = self.below(path, False)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ValueError(f"'{path}': it is no file")
        return os.fdopen(descriptor, "rb")

    def entries(self, path: str):
        """What is in a folder below, by name, as (name, is a folder, size); and whether there may be more."""
        folder = self.below(path, True)
        try:
            found, more = [], False
            with os.scandir(folder) as all_entries:
                for entry in all_entries:
                    if len(found) == ENTRIES_LOOKED_AT_MAX:
                        more = True
                        break
                    try:
                        entry.name.encode()
                        status = entry.stat(follow_symlinks=False)
                    except (OSError, UnicodeEncodeError):
                        continue
                    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                        found.append((entry.name, stat.S_ISDIR(status.st_mode), status.st_size))
        finally:
            os.close(folder)
        # By the bytes of the name, as in other languages.
        found.sort(key=lambda entry: entry[0].encode())
        return found, more

    async def list_context(self, context):
        asked = context.params
        found, more = self.entries(asked.path)
        if asked.after:
            found = [entry for entry in found if entry[0].encode() > asked.after.encode()]
        page = found[: min(asked.count or ENTRIES_MAX, ENTRIES_MAX)]
        entries = context.results.init("entries", len(page))
        for to, (name, is_folder, size) in zip(entries, page):
            to.name, to.isFolder, to.size = name, is_folder, size
        context.results.more = more or len(page) < len(found)

    async def read_context(self, context):
        asked = context.params
        with self.file(asked.path) as file:
            size = os.fstat(file.fileno()).st_size
            count = min(asked.count, READ_BYTES_MAX, max(0, size - asked.offset))
            context.results.bytes = os.pread(file.fileno(), count, asked.offset) if count else b""
            context.results.size = size

    async def search_context(self, context):
        asked = context.params
        if not asked.text:
            raise ValueError("there is nothing to search for")
        search = Search(self, asked.text.encode(), min(asked.limit, HITS_MAX), asked.found)
        await search.walk()
        context.results.hits, context.results.more = search.hits, search.more

    async def sub_context(self, context):
        context.results.folder = Folder(self.below(context.params.path, True))


class Search:
    """What is left of what one search may do."""

    def __init__(self, folder: Folder, text: bytes, limit: int, found):
        self.folder, self.text, self.limit, self.found = folder, text, limit, found
        self.hits, self.files, self.bytes, self.more = 0, 0, 0, False

    def is_over(self) -> bool:
        over = self.files >= SEARCH_FILES_MAX or self.bytes >= SEARCH_BYTES_MAX
        self.more = self.more or over
        return over or self.hits >= self.limit

    async def walk(self):
        folders = [("", 0)]
        while folders and not self.is_over():
            path, depth = folders.pop()
            self.files += 1
            try:
                entries, more = self.folder.entries(path)
            except ValueError:
                continue  # It went away meanwhile, or may not be read.
            self.more = self.more or more
            for name, is_folder, _ in reversed(entries):
                if is_folder and depth == SEARCH_DEPTH_MAX:
                    self.more = True
                elif is_folder:
                    folders.append((f"{path}/{name}" if path else name, depth + 1))
            for name, is_folder, _ in entries:
                if self.is_over():
                    return
                if not is_folder:
                    await self.look_into(f"{path}/{name}" if path else name)
                    await asyncio.sleep(0)  # Others are served meanwhile.

    async def look_into(self, path: str):
        self.files += 1
        try:
            file = self.folder.file(path)
        except ValueError:
            return
        with file:
            number = 0
            while not self.is_over() and (line := file.readline(LINE_BYTES_LOOKED_AT_MAX)):
                number += 1
                self.bytes += len(line)
                if self.text in line:
                    await self.found.line(path=path, number=number, text=cut(line))
                    self.hits += 1
                    if self.hits == self.limit:
                        self.more = True


async def serve(folder: str, socket: str):
    served = Folder(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    room = asyncio.Semaphore(CONNECTIONS_MAX)

    async def connected(stream):
        async with room:
            await capnp.TwoPartyServer(stream, bootstrap=served).on_disconnect()

    server = await capnp.AsyncIoStream.create_unix_server(connected, socket)
    async with server:
        await server.serve_forever()


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: folder_service.py FOLDER SOCKET", file=sys.stderr)
        return 2
    try:
        asyncio.run(capnp.run(serve(sys.argv[1], sys.argv[2])))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        print(f"folder_service.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
