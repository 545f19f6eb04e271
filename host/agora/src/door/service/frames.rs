//! Frames from a service's socket, as they may be handed to the host's RPC system.
//!
//! In: bytes of whoever serves the socket. Out: whole frames.
//! Promise: a frame is no larger than one of an agent's, whatever its header says, and no error in it tells an agent to graft anew:
//! that a service lost something of its own says nothing about the agent's graft.
//! Failure: what is no frame, and an abort, end the reading with the reason.

use agora_guest::wire::FRAME_BYTES_MAX;
use capnp::message::{Builder, Reader, ReaderOptions, ReaderSegments};
use capnp::serialize::BufferSegments;
use capnp_rpc::rpc_capnp::{exception, message, resolve, return_};
use tokio::net::UnixStream;

use crate::limits;

/// What is read at once.
const READ_BYTES: usize = 64 << 10;
/// Where an agent's SDK would see that its capabilities are gone.
const STALE: &str = "[stale] ";

/// Frames of one socket.
pub(super) struct Frames<'a> {
    socket: &'a UnixStream,
    bytes: Vec<u8>,
    /// Where the next frame begins.
    at: usize,
}

impl<'a> Frames<'a> {
    /// Frames of `socket`.
    pub(super) fn of(socket: &'a UnixStream) -> Self {
        Self {
            socket,
            bytes: Vec::new(),
            at: 0,
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// Why there is none any more, for people.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, String> {
        self.read(8).await?;
        let segments = self.word(0) as usize + 1;
        if segments > limits::SERVICE_SEGMENTS_MAX {
            return Err(format!(
                "it sent a message of {segments} segments, over the bound of {}; is it Cap'n Proto?",
                limits::SERVICE_SEGMENTS_MAX
            ));
        }
        let header = (4 * (segments + 1)).next_multiple_of(8);
        self.read(header).await?;
        let body: u64 = (1..=segments)
            .map(|i| u64::from(self.word(4 * i)) * 8)
            .sum();
        let total = body + header as u64;
        if total > FRAME_BYTES_MAX as u64 {
            return Err(format!(
                "it sent a message of {total} bytes, over the bound of {FRAME_BYTES_MAX}"
            ));
        }
        let total = total as usize;
        self.read(total).await?;
        let frame = self.bytes[self.at..self.at + total].to_vec();
        self.at += total;
        soften(frame)
    }

    fn word(&self, at: usize) -> u32 {
        let at = self.at + at;
        let bytes = self.bytes[at..at + 4].try_into();
        u32::from_le_bytes(bytes.expect("four bytes are four"))
    }

    /// Reads until so many bytes of the next frame are there.
    async fn read(&mut self, bytes: usize) -> Result<(), String> {
        while self.bytes.len() - self.at < bytes {
            self.bytes.drain(..self.at);
            self.at = 0;
            let had = self.bytes.len();
            self.bytes.reserve(READ_BYTES.max(bytes - had));
            self.socket.readable().await.map_err(lost)?;
            match self.socket.try_read_buf(&mut self.bytes) {
                Ok(0) if had == 0 => return Err("it closed the connection".into()),
                Ok(0) => return Err("it closed the connection in the middle of a message".into()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }
}

/// The connection broke.
pub(super) fn lost(error: std::io::Error) -> String {
    format!("the connection is lost ({error})")
}

/// A frame whose errors, if any, are those of one call.
fn soften(frame: Vec<u8>) -> Result<Vec<u8>, String> {
    let options = ReaderOptions::new();
    let softened = match frame.as_ptr().addr().is_multiple_of(8) {
        true => BufferSegments::new(&frame[..], options)
            .and_then(|segments| softened(&Reader::new(segments, options))),
        false => capnp::serialize::read_message(&mut &frame[..], options)
            .and_then(|message| softened(&message)),
    };
    match softened.map_err(|error| format!("it sent a malformed message ({error})"))? {
        Softened::Same => Ok(frame),
        Softened::Other(message) => Ok(capnp::serialize::write_message_to_words(&message)),
        Softened::Abort(reason) => Err(format!("it ended the connection: {reason}")),
    }
}

enum Softened {
    Same,
    Other(Box<Builder<capnp::message::HeapAllocator>>),
    Abort(String),
}

fn softened<S: ReaderSegments>(frame: &Reader<S>) -> capnp::Result<Softened> {
    let mut made = Box::new(Builder::new_default());
    let root = made.init_root::<message::Builder<'_>>();
    match frame.get_root::<message::Reader<'_>>()?.which() {
        Ok(message::Abort(reason)) => return Ok(Softened::Abort(text_of(reason?))),
        Ok(message::Return(answer)) => {
            let answer = answer?;
            let Ok(return_::Exception(error)) = answer.which() else {
                return Ok(Softened::Same);
            };
            let mut to = root.init_return();
            to.set_answer_id(answer.get_answer_id());
            to.set_release_param_caps(answer.get_release_param_caps());
            to.set_no_finish_needed(answer.get_no_finish_needed());
            write(error?, to.init_exception());
        }
        Ok(message::Resolve(resolved)) => {
            let resolved = resolved?;
            let Ok(resolve::Exception(error)) = resolved.which() else {
                return Ok(Softened::Same);
            };
            let mut to = root.init_resolve();
            to.set_promise_id(resolved.get_promise_id());
            write(error?, to.init_exception());
        }
        _ => return Ok(Softened::Same),
    }
    Ok(Softened::Other(made))
}

fn text_of(error: exception::Reader<'_>) -> String {
    let text = error.get_reason().ok().and_then(|text| text.to_str().ok());
    let text = text.unwrap_or("an error whose text is no text");
    crate::cut_text(text, limits::SERVICE_ERROR_BYTES_MAX).replace(STALE, "(stale) ")
}

fn write(error: exception::Reader<'_>, mut to: exception::Builder<'_>) {
    use exception::Type;
    to.set_reason(text_of(error).as_str());
    to.set_type(match error.get_type() {
        // What it lost is not what the agent has.
        Ok(Type::Disconnected) | Err(_) => Type::Failed,
        Ok(kind) => kind,
    });
}
