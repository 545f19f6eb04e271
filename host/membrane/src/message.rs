//! A message together with the capabilities it names.
//!
//! In: a message being built by one side, or a copy of one that somebody else owns.
//! Promise: what is read from it names the capabilities of its own table, so wrapping the table wraps the message:
//! capabilities in lists, in nested structs and behind AnyPointer alike.
//! Failure: a message that is malformed, too deep or too large to traverse is an error, never a partial copy.

use capnp::any_pointer;
use capnp::message::{Builder, HeapAllocator};
use capnp::private::capability::{ParamsHook, ResponseHook};
use capnp::private::layout::CapTable;
use capnp::traits::{Imbue, ImbueMut};
use std::rc::Rc;

/// Room for a small message; larger ones grow by more segments.
const FIRST_SEGMENT_WORDS: u32 = 64;

pub(crate) struct Message {
    body: Builder<HeapAllocator>,
    pub(crate) caps: CapTable,
}

impl Message {
    /// An empty message, expected to need about `words` words.
    pub(crate) fn blank(words: Option<u64>) -> Message {
        let words = words.map_or(FIRST_SEGMENT_WORDS, |words| {
            u32::try_from(words)
                .unwrap_or(u32::MAX)
                .clamp(FIRST_SEGMENT_WORDS, 1 << 20)
        });
        Message {
            body: Builder::new(HeapAllocator::new().first_segment_words(words)),
            caps: CapTable::new(),
        }
    }

    /// A deep copy of what `source` reads, naming the same capabilities; `words` is its size.
    pub(crate) fn copy_of(source: any_pointer::Reader<'_>, words: u64) -> capnp::Result<Message> {
        let mut copy = Message::blank(Some(words + 1));
        copy.builder()?.set_as(source)?;
        Ok(copy)
    }

    pub(crate) fn builder(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        let mut root: any_pointer::Builder<'_> = self.body.get_root()?;
        root.imbue_mut(&mut self.caps);
        Ok(root)
    }

    pub(crate) fn reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        let mut root: any_pointer::Reader<'_> = self.body.get_root_as_reader()?;
        root.imbue(&self.caps);
        Ok(root)
    }

    /// How many words a copy of it takes.
    pub(crate) fn words(&self) -> capnp::Result<u64> {
        Ok(self.reader()?.target_size()?.word_count)
    }

    /// The bytes, to tell whether somebody wrote between two looks.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.body.get_segments_for_output().concat()
    }
}

impl ParamsHook for Message {
    fn get(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.reader()
    }
}

/// Results, shared by the response and by what is pipelined on it.
pub(crate) struct Answer(pub(crate) Rc<Message>);

impl ResponseHook for Answer {
    fn get(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.0.reader()
    }
}
