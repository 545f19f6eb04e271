# A tool: it answers questions about a folder that it was given. An agent calls it, or whoever else is let near its socket.
# It never leaves the folder: paths name what is below it, and no part of a path is "..", empty, or a symbolic link.

@0xfaffea362ba1a6e4;

interface Folder {
  # One folder. Paths are relative to it, with "/" between their parts; "" is the folder itself.

  list @0 (path :Text, after :Text, count :UInt32) -> (entries :List(Entry), more :Bool);
  # What is in a folder, by name, beginning after the name `after`. At most 1,000 at once; `count` 0 asks for as many as may be.

  read @1 (path :Text, offset :UInt64, count :UInt32) -> (bytes :Data, size :UInt64);
  # Part of a file, at most 256 KiB at once, and the size of all of it. Shorter than asked for at the file's end only.

  search @2 (text :Text, limit :UInt32, found :Found) -> (hits :UInt32, more :Bool);
  # Tells `found` of every line that holds `text`, one after the other, each once the one before was taken: who is slow to take them
  # slows nothing but the search. At most `limit` lines, and no more than 1,000. `more`: a bound was reached before the end.

  sub @3 (path :Text) -> (folder :Folder);
  # A folder below as a capability of its own, for handing on: who holds it reaches nothing above it.

  struct Entry {
    name @0 :Text;
    isFolder @1 :Bool;
    size @2 :UInt64;
  }
}

interface Found {
  # Offered by whoever searches.

  line @0 (path :Text, number :UInt32, text :Text) -> ();
  # One line; its text is cut after 256 bytes. An error ends the search.
}
