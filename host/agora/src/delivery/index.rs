//! Where each counting message stands: by channel and ordinal, its place in the log and the root of its thread.
//!
//! Derived from the log, so it may be lost: what a snapshot does not vouch for is judged again on start.
//! Promise: a lookup costs one read at a known offset. New records are kept in memory until they are [written](Index::unwritten), so that a full
//! disk stops no delivery.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use agora_realm::{ChannelName, MessageId, Ordinal};

/// Where one message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its entry's seq.
    pub seq: u64,
    /// Its place in the entry.
    pub index: u16,
    /// The root of its thread.
    pub thread: MessageId,
}

const RECORD: usize = 8 + 2 + 32;

impl Place {
    fn encode(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.seq.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.index.to_le_bytes());
        bytes[10..].copy_from_slice(&self.thread.0);
        bytes
    }

    fn decode(bytes: &[u8; RECORD]) -> Self {
        Self {
            seq: u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")),
            index: u16::from_le_bytes(bytes[8..10].try_into().expect("2 bytes")),
            thread: MessageId(bytes[10..].try_into().expect("32 bytes")),
        }
    }
}

#[derive(Default)]
struct Channel {
    file: Option<Arc<File>>,
    /// Records in the file.
    flushed: u64,
    /// Records after those.
    tail: Vec<Place>,
}

/// The index of all channels.
pub struct Index {
    folder: PathBuf,
    channels: HashMap<ChannelName, Channel>,
}

impl Index {
    /// The index in `folder`, of which each channel has as many records as `latest` says: the rest is cut off.
    ///
    /// # Errors
    /// The operating system says no, or a channel has fewer records.
    pub fn open(
        folder: PathBuf,
        latest: impl IntoIterator<Item = (ChannelName, Ordinal)>,
    ) -> std::io::Result<Self> {
        let mut index = Self {
            folder,
            channels: HashMap::new(),
        };
        for (name, latest) in latest {
            let file = index.file(&name)?;
            let bytes = latest.0 * RECORD as u64;
            if file.metadata()?.len() < bytes {
                return Err(std::io::Error::other(format!(
                    "the index of '{name}' has fewer than {latest} records"
                )));
            }
            file.set_len(bytes)?;
            index.channels.insert(
                name,
                Channel {
                    file: Some(Arc::new(file)),
                    flushed: latest.0,
                    tail: Vec::new(),
                },
            );
        }
        Ok(index)
    }

    fn file(&self, name: &ChannelName) -> std::io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.folder.join(name.file_name()))
    }

    /// Adds the channel's next message.
    pub fn push(&mut self, channel: &ChannelName, place: Place) {
        match self.channels.get_mut(channel) {
            Some(known) => known.tail.push(place),
            None => {
                self.channels.insert(
                    channel.clone(),
                    Channel {
                        tail: vec![place],
                        ..Channel::default()
                    },
                );
            }
        }
    }

    /// Up to `count` messages from an ordinal on.
    ///
    /// # Errors
    /// The operating system says no.
    pub fn places(
        &self,
        channel: &ChannelName,
        from: Ordinal,
        count: usize,
    ) -> std::io::Result<Vec<Place>> {
        let Some(channel) = self.channels.get(channel) else {
            return Ok(Vec::new());
        };
        let first = from.0.saturating_sub(1);
        let mut places = Vec::new();
        if first < channel.flushed
            && let Some(file) = &channel.file
        {
            let records = ((channel.flushed - first) as usize).min(count);
            let mut bytes = vec![0; records * RECORD];
            file.read_exact_at(&mut bytes, first * RECORD as u64)?;
            places.extend(
                bytes
                    .chunks_exact(RECORD)
                    .map(|record| Place::decode(record.try_into().expect("a chunk of this size"))),
            );
        }
        let next = first + places.len() as u64;
        if next >= channel.flushed {
            let skip = (next - channel.flushed) as usize;
            let rest = channel.tail.iter().skip(skip).take(count - places.len());
            places.extend(rest.copied());
        }
        Ok(places)
    }

    /// What is in memory, to be written and synced outside of any lock, and then [told](Index::written).
    ///
    /// # Errors
    /// The operating system says no.
    pub fn unwritten(&mut self) -> std::io::Result<Vec<Unwritten>> {
        let waiting: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, channel)| !channel.tail.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        let mut all = Vec::new();
        for name in waiting {
            let file = match self.channels.get(&name).and_then(|c| c.file.clone()) {
                Some(file) => file,
                None => {
                    let file = Arc::new(self.file(&name)?);
                    // A file left by a realm's earlier life is not this one's.
                    file.set_len(0)?;
                    file
                }
            };
            let channel = self.channels.get_mut(&name).expect("it was just found");
            channel.file = Some(file.clone());
            all.push(Unwritten {
                file,
                at: channel.flushed * RECORD as u64,
                bytes: channel.tail.iter().flat_map(Place::encode).collect(),
                count: channel.tail.len(),
                channel: name,
            });
        }
        Ok(all)
    }

    /// These are on the disk now.
    pub fn written(&mut self, done: &Unwritten) {
        if let Some(channel) = self.channels.get_mut(&done.channel) {
            channel.flushed += done.count as u64;
            channel.tail.drain(..done.count);
        }
    }
}

/// Records on their way to the disk.
pub struct Unwritten {
    channel: ChannelName,
    file: Arc<File>,
    at: u64,
    bytes: Vec<u8>,
    count: usize,
}

impl Unwritten {
    /// Writes and syncs them. Blocks.
    ///
    /// # Errors
    /// The operating system says no; they stay in memory.
    pub fn write(&self) -> std::io::Result<()> {
        self.file.write_all_at(&self.bytes, self.at)?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seq: u64) -> Place {
        Place {
            seq,
            index: 3,
            thread: MessageId([seq as u8; 32]),
        }
    }

    #[test]
    fn records_are_found_before_and_after_a_flush_and_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let name = ChannelName::new("c").unwrap();
        let mut index = Index::open(dir.path().into(), []).unwrap();
        (1..=3).for_each(|seq| index.push(&name, place(seq)));
        for unwritten in index.unwritten().unwrap() {
            unwritten.write().unwrap();
            index.written(&unwritten);
        }
        (4..=6).for_each(|seq| index.push(&name, place(seq)));
        let all: Vec<_> = (1..=6).map(place).collect();
        assert_eq!(index.places(&name, Ordinal(1), 10).unwrap(), all);
        assert_eq!(index.places(&name, Ordinal(3), 2).unwrap(), all[2..4]);
        assert_eq!(index.places(&name, Ordinal(5), 9).unwrap(), all[4..]);
        assert_eq!(index.places(&name, Ordinal(7), 9).unwrap(), []);
        drop(index);
        let index = Index::open(dir.path().into(), [(name.clone(), Ordinal(2))]).unwrap();
        assert_eq!(index.places(&name, Ordinal(1), 10).unwrap(), all[..2]);
        assert!(Index::open(dir.path().into(), [(name, Ordinal(4))]).is_err());
    }

    #[test]
    fn remote_channels_have_files_of_their_own_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["release", "bravo/release", "bravo", "bravo/charlie/release"];
        let names = names.map(|name| ChannelName::new(name).unwrap());
        let mut index = Index::open(dir.path().into(), []).unwrap();
        for (name, seq) in names.iter().zip(1..) {
            index.push(name, place(seq));
        }
        for unwritten in index.unwritten().unwrap() {
            unwritten.write().unwrap();
        }
        drop(index);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), names.len());
        let latest = names.iter().map(|name| (name.clone(), Ordinal(1)));
        let index = Index::open(dir.path().into(), latest).unwrap();
        for (name, seq) in names.iter().zip(1..) {
            assert_eq!(index.places(name, Ordinal(1), 9).unwrap(), [place(seq)]);
        }
    }
}
