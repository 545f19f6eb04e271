//! What every run begins with: realms of two, three and four hosts, made once and used by many seeds.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agora::delivery::record::{Derived, Record, Seen};
use agora::persona::keys::Keys;
use agora::persona::secret::Secret;
use agora_realm::{
    Body, ChannelBody, ChannelName, Entry, Epoch, Genesis, GrantBody, HostId, KeyBody, KeySubject,
    Object, PersonaId, PersonaName, PublicKey, REALM_FORMAT, RealmId, Sealed, SigningKey, State,
    Terms, judge,
};

use crate::network::{Network, Standing};
use crate::oracle::Oracle;

/// Hosts of the largest realm.
pub(crate) const HOSTS_MAX: usize = 4;

pub(crate) fn square() -> ChannelName {
    ChannelName::new("square").unwrap()
}

/// The one agent of a host.
pub(crate) fn agent(host: usize) -> PersonaName {
    PersonaName::new(["ann", "bob", "cid", "dan"][host]).unwrap()
}

/// A realm's beginning: hosts, the channel, and one agent on each host with a grant for it.
pub(crate) struct Beginning {
    pub(crate) stands: Vec<Standing>,
    pub(crate) state: State,
    pub(crate) oracle: Oracle,
    /// The snapshot that a host keeps of it.
    pub(crate) snapshot: Vec<u8>,
}

/// Where runs take place, one after the other.
pub(crate) struct Bed {
    pub(crate) runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    pub(crate) keys: Vec<Arc<Keys>>,
    beginnings: Vec<Beginning>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        // In memory where there is such a place: it is made and removed very often.
        let shm = Path::new("/dev/shm");
        let folder = match tempfile::tempdir_in(shm) {
            Ok(folder) => folder,
            Err(_) => tempfile::tempdir().unwrap(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let keys: Vec<_> = (0..HOSTS_MAX)
            .map(|host| Arc::new(Keys::new(secret(folder.path(), host))))
            .collect();
        let mut bed = Self {
            runtime,
            folder,
            keys,
            beginnings: Vec::new(),
        };
        for host in 0..HOSTS_MAX {
            std::fs::create_dir_all(bed.index(host)).unwrap();
        }
        for hosts in 2..=HOSTS_MAX {
            let beginning = bed.begin(hosts);
            bed.beginnings.push(beginning);
        }
        bed
    }

    pub(crate) fn beginning(&self, hosts: usize) -> &Beginning {
        &self.beginnings[hosts - 2]
    }

    pub(crate) fn id(&self, host: usize) -> HostId {
        self.keys[host].host_id()
    }

    pub(crate) fn persona(&self, host: usize) -> PersonaId {
        PersonaId::new(self.id(host), agent(host))
    }

    /// The key of the agent's so-many-eth start.
    pub(crate) fn agent_key(&self, host: usize, start: u64) -> SigningKey {
        let secret = self.keys[host].secret();
        secret.persona_key(&agent(host), None, start)
    }

    fn index(&self, host: usize) -> PathBuf {
        self.folder.path().join(format!("index-{host}"))
    }

    /// Where a host keeps what it derives.
    pub(crate) fn derived(&self, host: usize) -> Derived {
        Derived {
            index: self.index(host),
            snapshot: self.folder.path().join(format!("snapshot-{host}")),
            tree: self.folder.path().join(format!("tree-{host}")),
            pruned: self.folder.path().join(format!("pruned-{host}")),
        }
    }

    /// An entry of this host itself.
    pub(crate) fn entry(
        &self,
        host: usize,
        realm: Option<RealmId>,
        epoch: Epoch,
        time_ms: i64,
        body: Body,
    ) -> Sealed {
        let key = self.keys[host].host();
        let entry = Entry {
            realm,
            host: self.id(host),
            author: None,
            signer: key.public(),
            epoch,
            time_ms,
            grant: None,
            body,
        };
        entry.seal(&key, &[0; 32]).unwrap()
    }

    fn begin(&self, hosts: usize) -> Beginning {
        let host_key = |host: usize| self.keys[host].host().public();
        let genesis = Genesis {
            format: REALM_FORMAT,
            nonce: [7; 32],
            fencers: Vec::new(),
        };
        let body = Body::Key(KeyBody {
            genesis: Some(genesis),
            ..key_body(KeySubject::Host(self.id(0)), host_key(0))
        });
        let mut sealed = vec![self.entry(0, None, Epoch(1), 0, body)];
        let realm = Some(RealmId::from(sealed[0].id()));
        let mut say = |host: usize, body: Body| {
            let time_ms = sealed.len() as i64;
            sealed.push(self.entry(host, realm, Epoch(1), time_ms, body));
        };
        for host in 1..hosts {
            let body = key_body(KeySubject::Host(self.id(host)), host_key(host));
            say(0, Body::Key(body));
        }
        let channel = ChannelBody {
            name: square(),
            hops: 3,
            reactions: 8,
            carry: false,
        };
        say(0, Body::Channel(channel));
        for host in 0..hosts {
            let key = self.agent_key(host, 1).public();
            say(
                host,
                Body::Key(key_body(KeySubject::Persona(agent(host)), key)),
            );
            say(host, self.grant(host));
        }
        let (mut state, mut oracle) = (State::new(), Oracle::default());
        for (sealed, seq) in sealed.iter().zip(1..) {
            let judged = judge(&mut state, seq, Ok(sealed));
            assert_eq!(judged.verdict, Ok(()), "{:?}", sealed.entry());
            oracle.see(seq, Ok(sealed), &judged);
        }
        let stands: Vec<_> = sealed
            .iter()
            .map(|sealed| Standing::new(sealed.id().0, sealed.stored().clone(), 0))
            .collect();
        let network = Network::new(stands.clone(), 1);
        let derived = self.derived(0);
        let snapshot = derived.snapshot.clone();
        // That of a smaller realm is another's.
        let _ = std::fs::remove_file(&snapshot);
        let _ = std::fs::remove_file(&derived.tree);
        let seen = Seen {
            tip: None,
            accepts_loss: false,
            host: self.id(0),
        };
        let record = Record::open(network.connect(0), derived, seen, false, |_, _| ());
        let record = self.runtime.block_on(record).unwrap();
        record.keep_snapshot();
        Beginning {
            stands,
            state,
            oracle,
            snapshot: std::fs::read(snapshot).unwrap(),
        }
    }

    /// A grant of the square to the host's agent.
    pub(crate) fn grant(&self, host: usize) -> Body {
        Body::Grant(GrantBody {
            persona: self.persona(host),
            object: Object::Channel(square()),
            terms: Terms::ALL,
            parent: None,
            lasting: false,
        })
    }
}

pub(crate) fn key_body(subject: KeySubject, public_key: PublicKey) -> KeyBody {
    KeyBody {
        subject,
        public_key,
        component: None,
        started: false,
        genesis: None,
        origin: None,
    }
}

/// The secret of a host, the same in every run.
fn secret(folder: &Path, host: usize) -> Secret {
    let path = folder.join(format!("secret-{host}"));
    std::fs::write(&path, format!("{:064x}\n", 0xa90_0a00 + host)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Secret::open(&path).unwrap()
}
