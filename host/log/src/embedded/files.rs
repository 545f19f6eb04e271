//! The few file operations that the log is made of, so that tests can have them fail.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{Advice, FallocateFlags, fadvise, fallocate},
    io::Errno,
};

/// A place where files are.
pub(super) trait Files: Send + Sync + 'static {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates an empty file, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>>;
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn OpenFile>>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Puts a file in another's place: after a crash it is the one or the other.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes durable which files there are.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file among [`Files`].
pub(super) trait OpenFile: Send + Sync {
    fn bytes(&self) -> io::Result<u64>;
    /// Makes the file this long, with the room really there: writing into it can't fail for want of room, on file
    /// systems that write in place.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Makes the file this long; what is added takes no room where the file system can leave it out.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// Reads until `buf` is full or the file ends; says how much it read.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()>;
    /// Makes what was written durable. After an error nothing is known of what was written since the last success.
    fn sync(&self) -> io::Result<()>;
    /// Has the next read come from storage, not memory, where that can be asked for: a page that failed to be synced
    /// stays readable in memory.
    fn forget_cached(&self);
}

/// The real ones.
pub(super) struct Disk;

impl Files for Disk {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?
            .map(|found| Ok(found?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Arc::new(DiskFile(options.mode(0o600).open(path)?)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn OpenFile>> {
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

struct DiskFile(File);

impl OpenFile for DiskFile {
    fn bytes(&self) -> io::Result<u64> {
        let found = self.0.metadata()?;
        if found.is_file() {
            Ok(found.len())
        } else {
            Err(io::Error::other("this is not a plain file"))
        }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut at = self.bytes()?;
        match fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        // Really written: a sync then finds nothing to note but the data, which measured faster.
        let zeros = vec![0; (1 << 20).min(bytes.saturating_sub(at)) as usize];
        while at < bytes {
            let part = zeros.len().min((bytes - at) as usize);
            self.0.write_all_at(&zeros[..part], at)?;
            at += part as u64;
        }
        self.0.sync_all()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buf.len() {
            match self.0.read_at(&mut buf[read..], at + read as u64) {
                Ok(0) => break,
                Ok(bytes) => read += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(buf, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget_cached(&self) {
        let _ = fadvise(&self.0, 0, None, Advice::DontNeed);
    }
}
