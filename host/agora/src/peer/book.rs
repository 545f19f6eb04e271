//! What operators told a running host of its peers, beyond the manifest: kept in the data folder, and known at the next start.
//!
//! In: addresses, each a peer's, by its name and its id. Out: the same, after any restart.
//! Promise: a change that is answered is on the disk; after a crash the file is the old one or the new one.
//! Failure: a file that isn't understood is refused, naming the line. One that can't be written stays as it was.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agora_dial::{Multiaddr, PeerId};

use crate::boot::address::{parse_dial, parse_peer_id};
use crate::boot::data::{DataError, replace};

const FORMAT: &str = "agora book 1";

/// Why the book can't be read.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// A line says nothing that is known.
    #[error(
        "{}: line {line}: {why} (mend the line; or take the file away: what it says of peers must then be told again, as with `agora dial`)",
        path.display()
    )]
    Line {
        /// Of which file.
        path: PathBuf,
        /// Which, from 1 on.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pages {
    /// By the peer's name: the id that it had then, and where it may be, what was told last first.
    pub addresses: BTreeMap<String, (PeerId, Vec<Multiaddr>)>,
}

impl Pages {
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, first)| first != FORMAT) {
            return Err((1, format!("it doesn't begin with '{FORMAT}'")));
        }
        let mut pages = Self::default();
        for (at, line) in lines {
            let words: Vec<_> = line.split(' ').collect();
            pages.take(&words).map_err(|why| (at + 1, why))?;
        }
        Ok(pages)
    }

    fn take(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["address", name, id, address] => {
                let (id, (address, _)) = (parse_peer_id(id)?, parse_dial(address)?);
                let known = self.addresses.entry((*name).to_owned());
                let (first, addresses) = known.or_insert_with(|| (id, Vec::new()));
                if *first != id {
                    return Err(format!("'{name}' has two ids here, {first} and {id}"));
                }
                addresses.push(address);
                Ok(())
            }
            _ => Err("it is none of: address NAME ID ADDRESS".into()),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{FORMAT}\n");
        for (name, (id, addresses)) in &self.addresses {
            for address in addresses {
                text.push_str(&format!("address {name} {id} {address}\n"));
            }
        }
        text
    }
}

/// The file, and what is in it.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    pages: Mutex<Pages>,
}

impl Book {
    /// Reads it. Where there is no file, nothing was told.
    ///
    /// # Errors
    /// See [`BookError`].
    pub fn open(path: PathBuf) -> Result<Self, BookError> {
        let pages = match std::fs::read_to_string(&path) {
            Ok(text) => Pages::parse(&text).map_err(|(line, why)| BookError::Line {
                path: path.clone(),
                line,
                why,
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Pages::default(),
            Err(source) => return Err(BookError::Io { path, source }),
        };
        Ok(Self {
            path,
            pages: Mutex::new(pages),
        })
    }

    /// What is in it now.
    pub fn pages(&self) -> Pages {
        self.lock().clone()
    }

    /// Changes what is in it. Blocks until it is on the disk.
    ///
    /// # Errors
    /// It can't be written; all is as it was.
    pub fn change(&self, change: impl FnOnce(&mut Pages)) -> Result<(), DataError> {
        let mut pages = self.lock();
        let mut next = pages.clone();
        change(&mut next);
        if next != *pages {
            replace(&self.path, next.text().as_bytes())?;
            *pages = next;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn told() -> Pages {
        let at = |text: &str| text.parse().unwrap();
        let addresses = vec![
            at("/ip4/127.0.0.1/udp/4101/quic-v1"),
            at("/dns4/bravo.example/tcp/4101"),
        ];
        Pages {
            addresses: [("bravo".to_owned(), (ID.parse().unwrap(), addresses))].into(),
        }
    }

    #[test]
    fn what_was_told_is_read_again_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book");
        let book = Book::open(path.clone()).unwrap();
        assert_eq!(book.pages(), Pages::default());
        book.change(|pages| *pages = told()).unwrap();
        assert_eq!(Book::open(path.clone()).unwrap().pages(), told());
        book.change(|pages| pages.addresses.clear()).unwrap();
        assert_eq!(Book::open(path).unwrap().pages(), Pages::default());
    }

    #[test]
    fn a_change_that_can_t_be_written_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path().join("gone/book")).unwrap();
        assert!(book.change(|pages| *pages = told()).is_err());
        assert_eq!(book.pages(), Pages::default());
    }

    #[test]
    fn a_file_that_is_not_understood_is_refused_with_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book");
        let other = "12D3KooWSnE1NXNQUVb6cN8Gpoid3mJfRcMK9tWEyvN2CyLZiQiH";
        let one = format!("address bravo {ID} /ip4/127.0.0.1/tcp/4101");
        for (text, line) in [
            (String::new(), 1),
            ("agora book 9\n".into(), 1),
            (format!("{FORMAT}\n{one}\nadress\n"), 3),
            (format!("{FORMAT}\naddress bravo {ID} nowhere\n"), 2),
            (format!("{FORMAT}\n{one}\n{}\n", one.replace(ID, other)), 3),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = Book::open(path.clone()).expect_err(&text);
            assert!(
                matches!(&error, BookError::Line { line: at, .. } if *at == line),
                "{text}: {error}"
            );
        }
    }
}
