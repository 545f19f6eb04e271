//! The service, as the librarian asks it.
//!
//! In: questions. Out: text.
//! Promise: an answer fits a message; what is more is said to be so.
//! Failure: the service's own error.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::rc::Rc;

use agora_guest::Error;
use folder_service::folder_capnp::{folder, found};

/// Bytes of a file in one answer.
const READ_BYTES: u32 = 64 << 10;
/// Lines of a search in one answer.
const LINES: u32 = 50;
/// Bytes of one of them, its path included.
const LINE_BYTES_MAX: usize = 4096;

/// What may be asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Question<'a> {
    List(&'a str),
    Read(&'a str),
    Search(&'a str),
}

impl<'a> Question<'a> {
    /// Reads one as it is said on the channel.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        let rest = rest.trim();
        match verb {
            "list" => Some(Self::List(rest)),
            "read" if !rest.is_empty() => Some(Self::Read(rest)),
            "search" if !rest.is_empty() => Some(Self::Search(rest)),
            _ => None,
        }
    }
}

/// The folder service.
pub(crate) struct Folder(folder::Client);

/// Takes the lines that a search finds, and no more than it asked for: a service is not to fill its memory.
#[derive(Default)]
struct Lines {
    text: RefCell<String>,
    taken: Cell<u32>,
}

impl found::Server for Lines {
    async fn line(
        self: Rc<Self>,
        params: found::LineParams,
        _results: found::LineResults,
    ) -> Result<(), capnp::Error> {
        let line = params.get()?;
        let (path, text) = (line.get_path()?.to_str()?, line.get_text()?.to_str()?);
        if self.taken.get() == LINES || path.len() + text.len() > LINE_BYTES_MAX {
            return Err(capnp::Error::failed(
                "that is more than was asked for".into(),
            ));
        }
        self.taken.set(self.taken.get() + 1);
        let number = line.get_number();
        let _ = writeln!(self.text.borrow_mut(), "{path}:{number}: {text}");
        Ok(())
    }
}

impl Folder {
    pub(crate) fn new(client: folder::Client) -> Self {
        Self(client)
    }

    pub(crate) async fn ask(&self, question: Question<'_>) -> Result<String, Error> {
        match question {
            Question::List(path) => self.list(path).await,
            Question::Read(path) => self.read(path).await,
            Question::Search(text) => self.search(text).await,
        }
    }

    async fn list(&self, path: &str) -> Result<String, Error> {
        let mut request = self.0.list_request();
        request.get().set_path(path);
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        let mut text = String::new();
        for entry in answer.get_entries()?.iter() {
            let name = entry.get_name()?.to_str()?;
            let _ = match entry.get_is_folder() {
                true => writeln!(text, "{name}/"),
                false => writeln!(text, "{name} ({} bytes)", entry.get_size()),
            };
        }
        if answer.get_more() {
            text.push_str("... and more\n");
        }
        Ok(text)
    }

    async fn read(&self, path: &str) -> Result<String, Error> {
        let mut request = self.0.read_request();
        request.get().set_path(path);
        request.get().set_count(READ_BYTES);
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        let bytes = answer.get_bytes()?;
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        let left = answer.get_size().saturating_sub(bytes.len() as u64);
        if left > 0 {
            let _ = write!(text, "\n... and {left} bytes more");
        }
        Ok(text)
    }

    async fn search(&self, text: &str) -> Result<String, Error> {
        let lines = Rc::new(Lines::default());
        let mut request = self.0.search_request();
        request.get().set_text(text);
        request.get().set_limit(LINES);
        let found: found::Client = capnp_rpc::new_client_from_rc(lines.clone());
        request.get().set_found(found);
        let answer = request.send().promise.await?;
        let mut told = lines.text.take();
        match (answer.get()?.get_more(), told.is_empty()) {
            (true, _) => told.push_str("... and maybe more\n"),
            (false, true) => told.push_str("nothing\n"),
            (false, false) => {}
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_they_are_said() {
        for (text, question) in [
            ("list", Some(Question::List(""))),
            (" list docs ", Some(Question::List("docs"))),
            ("read docs/a b.txt", Some(Question::Read("docs/a b.txt"))),
            ("search  two words", Some(Question::Search("two words"))),
            ("read", None),
            ("search ", None),
            ("delete a", None),
            ("", None),
        ] {
            assert_eq!(Question::read(text), question, "{text}");
        }
    }
}
