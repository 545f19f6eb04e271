//! Answers about one folder.
//!
//! In: calls of `folder.capnp`. Out: names, bytes and lines of what lies below the folder.
//! Promise: every path is walked part by part from the folder's own descriptor, and no part is followed if it is a symbolic link; so
//! whatever is renamed or linked meanwhile, nothing outside is reached. Every answer is bounded.
//! Failure: an error for that call, which names the path as it was asked for.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use capnp::Error;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use crate::folder_capnp::{folder, found};

/// Entries in one answer.
const ENTRIES_MAX: usize = 1000;
/// Entries of a folder that are looked at.
const ENTRIES_LOOKED_AT_MAX: usize = 65_536;
/// Bytes in one answer.
const READ_BYTES_MAX: u32 = 256 << 10;
/// Lines that one search tells of.
const HITS_MAX: u32 = 1000;
/// Bytes of a line that a search tells of.
const LINE_BYTES_MAX: usize = 256;
/// Bytes of a line that a search looks at.
const LINE_BYTES_LOOKED_AT_MAX: u64 = 64 << 10;
/// Files and folders that one search opens.
const SEARCH_FILES_MAX: usize = 10_000;
/// Bytes that one search reads.
const SEARCH_BYTES_MAX: u64 = 64 << 20;
/// How deep a search goes.
const SEARCH_DEPTH_MAX: usize = 32;
/// Parts of a path.
const PATH_PARTS_MAX: usize = 64;

/// A folder, open.
pub struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder for serving it.
    ///
    /// # Errors
    /// It is none, or may not be read.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens what lies at `path`, below this folder.
    fn below(&self, path: &str, is_folder: bool) -> Result<OwnedFd, Error> {
        let wrong = |why: &str| Error::failed(format!("'{path}': {why}"));
        let parts: Vec<_> = match path {
            "" => vec!["."],
            path => path.split('/').collect(),
        };
        if parts.len() > PATH_PARTS_MAX {
            return Err(wrong("too deep"));
        }
        let mut at: Option<OwnedFd> = None;
        for (i, part) in parts.iter().enumerate() {
            if part.is_empty() || *part == ".." || (*part == "." && !path.is_empty()) {
                return Err(wrong("a path here has no empty parts, no '.' and no '..'"));
            }
            let mut flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if is_folder || i + 1 < parts.len() {
                flags |= OFlags::DIRECTORY;
            } else {
                // A pipe in the folder must not make this wait for whoever writes to it.
                flags |= OFlags::NONBLOCK;
            }
            let from = at.as_ref().unwrap_or(&self.0);
            let next = openat(from, *part, flags, Mode::empty());
            at = Some(next.map_err(|error| match error {
                rustix::io::Errno::LOOP => wrong("symbolic links are not followed"),
                error => wrong(&std::io::Error::from(error).to_string()),
            })?);
        }
        at.ok_or_else(|| wrong("it is no path"))
    }

    fn file(&self, path: &str) -> Result<File, Error> {
        let file = File::from(self.below(path, false)?);
        match file.metadata() {
            Ok(found) if found.is_file() => Ok(file),
            Ok(_) => Err(Error::failed(format!("'{path}': it is no file"))),
            Err(error) => Err(Error::failed(format!("'{path}': {error}"))),
        }
    }

    /// What is in a folder below, by name; and whether there may be more.
    fn entries(&self, path: &str) -> Result<(Vec<(String, FileType)>, bool), Error> {
        let wrong = |error: rustix::io::Errno| {
            Error::failed(format!("'{path}': {}", std::io::Error::from(error)))
        };
        let folder = self.below(path, true)?;
        let mut found = Vec::new();
        let mut more = false;
        for entry in Dir::read_from(&folder).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            // What has no name in text can't be asked for either.
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            if found.len() == ENTRIES_LOOKED_AT_MAX {
                more = true;
                break;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |stat| {
                        FileType::from_raw_mode(stat.st_mode)
                    }),
                known => known,
            };
            if matches!(kind, FileType::RegularFile | FileType::Directory) {
                found.push((name.to_owned(), kind));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((found, more))
    }
}

fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    }
}

/// At most so many bytes of a line, cut between characters.
fn cut(line: &str) -> &str {
    let end = (0..=LINE_BYTES_MAX.min(line.len()))
        .rev()
        .find(|at| line.is_char_boundary(*at));
    &line[..end.unwrap_or(0)]
}

/// What is left of what one search may do.
struct Search<'a> {
    folder: &'a Folder,
    text: &'a str,
    to: found::Client,
    hits: u32,
    limit: u32,
    files: usize,
    bytes: u64,
    more: bool,
}

impl Search<'_> {
    fn is_over(&mut self) -> bool {
        let over = self.files >= SEARCH_FILES_MAX || self.bytes >= SEARCH_BYTES_MAX;
        self.more |= over;
        over || self.hits >= self.limit
    }

    async fn walk(&mut self) -> Result<(), Error> {
        let mut folders = vec![(String::new(), 0)];
        while let Some((path, depth)) = folders.pop() {
            if self.is_over() {
                return Ok(());
            }
            self.files += 1;
            let (entries, more) = match self.folder.entries(&path) {
                Ok(found) => found,
                // It went away meanwhile, or may not be read.
                Err(_) if depth > 0 => continue,
                Err(error) => return Err(error),
            };
            self.more |= more;
            for (name, kind) in entries.iter().rev() {
                match kind {
                    FileType::Directory if depth == SEARCH_DEPTH_MAX => self.more = true,
                    FileType::Directory => folders.push((join(&path, name), depth + 1)),
                    _ => {}
                }
            }
            for (name, kind) in &entries {
                if *kind == FileType::RegularFile {
                    if self.is_over() {
                        return Ok(());
                    }
                    self.look_into(&join(&path, name)).await?;
                    // Others are served meanwhile.
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }

    async fn look_into(&mut self, path: &str) -> Result<(), Error> {
        use std::io::Read;
        self.files += 1;
        let Ok(file) = self.folder.file(path) else {
            return Ok(());
        };
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let mut part = (&mut lines).take(LINE_BYTES_LOOKED_AT_MAX);
            let read = part.read_until(b'\n', &mut line).unwrap_or(0);
            if read == 0 {
                return Ok(());
            }
            self.bytes += read as u64;
            let line = String::from_utf8_lossy(&line);
            if line.contains(self.text) {
                let mut hit = self.to.line_request();
                hit.get().set_path(path);
                hit.get().set_number(number);
                hit.get().set_text(cut(line.trim_end()));
                hit.send().promise.await?;
                self.hits += 1;
                if self.hits == self.limit {
                    self.more = true;
                }
            }
            if self.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl folder::Server for Folder {
    async fn list(
        self: Rc<Self>,
        params: folder::ListParams,
        mut results: folder::ListResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let (path, after) = (params.get_path()?.to_str()?, params.get_after()?.to_str()?);
        let most = match params.get_count() {
            0 => ENTRIES_MAX,
            count => ENTRIES_MAX.min(count as usize),
        };
        let (entries, more) = self.entries(path)?;
        let begin =
            entries.partition_point(|(name, _)| !after.is_empty() && name.as_str() <= after);
        let rest = &entries[begin..];
        let page = &rest[..most.min(rest.len())];
        results.get().set_more(more || page.len() < rest.len());
        let folder = self.below(path, true)?;
        let mut list = results.get().init_entries(page.len() as u32);
        for (i, (name, kind)) in page.iter().enumerate() {
            let mut to = list.reborrow().get(i as u32);
            to.set_name(name.as_str());
            to.set_is_folder(*kind == FileType::Directory);
            let stat = statat(&folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            to.set_size(stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0)));
        }
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        params: folder::ReadParams,
        mut results: folder::ReadResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let path = params.get_path()?.to_str()?;
        let file = self.file(path)?;
        let wrong = |error: std::io::Error| Error::failed(format!("'{path}': {error}"));
        let size = file.metadata().map_err(wrong)?.len();
        let left = size.saturating_sub(params.get_offset());
        let count = u64::from(params.get_count().min(READ_BYTES_MAX)).min(left);
        let mut bytes = vec![0; count as usize];
        let mut at = 0;
        while at < bytes.len() {
            match file.read_at(&mut bytes[at..], params.get_offset() + at as u64) {
                Ok(0) => break,
                Ok(read) => at += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        results.get().set_bytes(&bytes[..at]);
        results.get().set_size(size);
        Ok(())
    }

    async fn search(
        self: Rc<Self>,
        params: folder::SearchParams,
        mut results: folder::SearchResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let text = params.get_text()?.to_str()?;
        if text.is_empty() {
            return Err(Error::failed("there is nothing to search for".into()));
        }
        let mut search = Search {
            folder: &self,
            text,
            to: params.get_found()?,
            hits: 0,
            limit: params.get_limit().min(HITS_MAX),
            files: 0,
            bytes: 0,
            more: false,
        };
        search.walk().await?;
        results.get().set_hits(search.hits);
        results.get().set_more(search.more);
        Ok(())
    }

    async fn sub(
        self: Rc<Self>,
        params: folder::SubParams,
        mut results: folder::SubResults,
    ) -> Result<(), Error> {
        let path = params.get()?.get_path()?.to_str()?;
        let below = Self(self.below(path, true)?);
        results.get().set_folder(capnp_rpc::new_client(below));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn play<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime.expect("a thread can have a runtime"), test)
    }

    /// A folder with something beside it that is nobody's business.
    fn served() -> (tempfile::TempDir, folder::Client) {
        let all = tempfile::tempdir().expect("there is room");
        let inside = all.path().join("inside");
        std::fs::create_dir_all(inside.join("deep/er")).expect("it is ours");
        for (name, text) in [
            ("secret", "the secret"),
            ("inside/a.txt", "one\ntwo words\nthree\n"),
            ("inside/deep/b.txt", "two again\n"),
            ("inside/deep/er/c.txt", "nothing\n"),
        ] {
            std::fs::write(all.path().join(name), text).expect("it is ours");
        }
        for (link, to) in [
            ("link", "../secret"),
            ("up", ".."),
            ("deep/absolute", "/etc"),
            ("within", "a.txt"),
        ] {
            std::os::unix::fs::symlink(to, inside.join(link)).expect("it is ours");
        }
        let folder = Folder::open(&inside).expect("it is a folder");
        (all, capnp_rpc::new_client(folder))
    }

    async fn read(
        from: &folder::Client,
        path: &str,
        offset: u64,
        count: u32,
    ) -> Result<Vec<u8>, Error> {
        let mut request = from.read_request();
        request.get().set_path(path);
        request.get().set_offset(offset);
        request.get().set_count(count);
        let answer = request.send().promise.await?;
        Ok(answer.get()?.get_bytes()?.to_vec())
    }

    async fn list(
        from: &folder::Client,
        path: &str,
        after: &str,
        count: u32,
    ) -> Result<(Vec<String>, bool), Error> {
        let mut request = from.list_request();
        request.get().set_path(path);
        request.get().set_after(after);
        request.get().set_count(count);
        let answer = request.send().promise.await?;
        let entries = answer.get()?.get_entries()?;
        let names = entries
            .iter()
            .map(|entry| Ok(entry.get_name()?.to_string()?));
        Ok((
            names.collect::<Result<_, Error>>()?,
            answer.get()?.get_more(),
        ))
    }

    #[test]
    fn what_is_in_the_folder_is_listed_and_read() {
        play(async {
            let (_all, folder) = served();
            let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
            let all = list(&folder, "", "", 0).await.expect("it is there");
            assert_eq!(all, (names(&["a.txt", "deep"]), false));
            let first = list(&folder, "", "", 1).await.expect("it is there");
            assert_eq!(first, (names(&["a.txt"]), true));
            let rest = list(&folder, "", "a.txt", 1).await.expect("it is there");
            assert_eq!(rest, (names(&["deep"]), false));
            let bytes = read(&folder, "a.txt", 4, 3).await.expect("it is there");
            assert_eq!(bytes, b"two");
            let bytes = read(&folder, "deep/b.txt", 0, u32::MAX).await;
            assert_eq!(bytes.expect("it is there"), b"two again\n");
            assert_eq!(
                read(&folder, "a.txt", 1000, 3).await.expect("it is there"),
                b""
            );
        });
    }

    #[test]
    fn nothing_outside_the_folder_is_reached() {
        play(async {
            let (all, folder) = served();
            let outside = all.path().join("secret").display().to_string();
            for path in [
                "../secret",
                "link",
                "up/secret",
                "deep/../../secret",
                "deep/absolute/passwd",
                "within",
                "/etc/passwd",
                "",
                ".",
                "..",
                "./a.txt",
                "deep//b.txt",
                "deep",
                outside.as_str(),
                "a.txt/",
                "nul\0l",
            ] {
                assert!(read(&folder, path, 0, 100).await.is_err(), "{path}");
            }
            for path in ["..", "up", "deep/absolute", "/", "a.txt", "deep/.."] {
                assert!(list(&folder, path, "", 0).await.is_err(), "{path}");
            }
        });
    }

    #[test]
    fn a_folder_below_leads_nowhere_else() {
        play(async {
            let (_all, folder) = served();
            let mut request = folder.sub_request();
            request.get().set_path("deep");
            let deep = request.send().pipeline.get_folder();
            assert_eq!(
                read(&deep, "b.txt", 0, 3).await.expect("it is there"),
                b"two"
            );
            for path in ["../a.txt", "deep/b.txt", "absolute/passwd"] {
                assert!(read(&deep, path, 0, 3).await.is_err(), "{path}");
            }
            let mut request = folder.sub_request();
            request.get().set_path("up");
            assert!(request.send().promise.await.is_err());
        });
    }

    #[derive(Default)]
    struct Told(RefCell<Vec<(String, u32, String)>>);

    impl found::Server for Told {
        async fn line(
            self: Rc<Self>,
            params: found::LineParams,
            _: found::LineResults,
        ) -> Result<(), Error> {
            let line = params.get()?;
            let text = line.get_text()?.to_string()?;
            let path = line.get_path()?.to_string()?;
            self.0.borrow_mut().push((path, line.get_number(), text));
            Ok(())
        }
    }

    async fn search(
        folder: &folder::Client,
        text: &str,
        limit: u32,
    ) -> (Vec<(String, u32, String)>, bool) {
        let told = Rc::new(Told::default());
        let mut request = folder.search_request();
        request.get().set_text(text);
        request.get().set_limit(limit);
        request
            .get()
            .set_found(capnp_rpc::new_client_from_rc(told.clone()));
        let answer = request.send().promise.await.expect("it searches");
        let answer = answer.get().expect("it answers");
        assert_eq!(answer.get_hits() as usize, told.0.borrow().len());
        (told.0.take(), answer.get_more())
    }

    #[test]
    fn a_search_tells_of_lines_up_to_its_limit_and_of_nothing_outside() {
        play(async {
            let (_all, folder) = served();
            let a = ("a.txt".to_owned(), 2, "two words".to_owned());
            let b = ("deep/b.txt".to_owned(), 1, "two again".to_owned());
            assert_eq!(
                search(&folder, "two", 10).await,
                (vec![a.clone(), b], false)
            );
            assert_eq!(search(&folder, "two", 1).await, (vec![a], true));
            assert_eq!(search(&folder, "secret", 10).await, (vec![], false));
        });
    }

    #[test]
    fn a_line_is_cut_between_characters() {
        assert_eq!(cut(&"ä".repeat(200)).len(), 256);
        assert_eq!(cut(&format!("a{}", "ä".repeat(200))).len(), 255);
    }
}
