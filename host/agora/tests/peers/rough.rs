//! A network between two hosts that is bad: what goes through it comes late, out of order, twice or not at all, stands still, is broken off,
//! comes from another address than before, or is cut for a while.
//!
//! Over UDP datagrams are delayed, lost, doubled and overtaken. Over TCP bytes are delayed and stand still for a while; a connection is
//! broken off in mid-stream. What happens is drawn from a seed; to which bytes it happens depends on the machine, too, so a seed repeats the
//! weather and not the run.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// Another one than the hosts listen at, as for [`super::proxy::Proxy`].
const FRONT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Datagrams under way; more are lost, as on any router.
const UNDER_WAY_MAX: usize = 4096;

/// Chance from a seed: the same seed, the same draws. SplitMix64.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From one to the other, each included.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    fn per_mille(&mut self, times: u64) -> bool {
        self.next() % 1000 < times
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    /// What everything takes one way, in milliseconds.
    delay_ms: u64,
    /// What it may take more.
    jitter_ms: u64,
    /// Of a thousand datagrams, those that are lost.
    lost: u64,
    /// Those that come twice.
    doubled: u64,
    /// Those that are overtaken by what comes behind them.
    overtaken: u64,
    /// Of a thousand pieces of a stream, those behind which it stands still.
    stalled: u64,
    /// For how long at most.
    stall_ms: u64,
}

impl Weather {
    pub(crate) const CALM: Self = Self {
        delay_ms: 0,
        jitter_ms: 0,
        lost: 0,
        doubled: 0,
        overtaken: 0,
        stalled: 0,
        stall_ms: 0,
    };

    /// Some bad weather: 1 to 10 % of datagrams lost.
    pub(crate) fn bad(chance: &mut Chance) -> Self {
        Self {
            delay_ms: chance.between(1, 30),
            jitter_ms: chance.between(1, 30),
            lost: chance.between(10, 100),
            doubled: chance.between(0, 50),
            overtaken: chance.between(0, 100),
            stalled: chance.between(0, 10),
            stall_ms: chance.between(100, 1500),
        }
    }
}

struct Sky {
    weather: Mutex<Weather>,
    chance: Mutex<Chance>,
    is_cut: watch::Sender<bool>,
    /// How often the connections were broken off.
    broken: watch::Sender<u64>,
    /// How often those who come through got another address.
    moved: watch::Sender<u64>,
    under_way: Arc<Semaphore>,
}

impl Sky {
    /// After which times a datagram comes out at the other end: none, one or two.
    fn datagram(&self) -> Vec<Duration> {
        let weather = *self.weather.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.is_cut.borrow() || chance.per_mille(weather.lost) {
            return Vec::new();
        }
        let copies = 1 + usize::from(chance.per_mille(weather.doubled));
        (0..copies)
            .map(|_| {
                let mut delay = weather.delay_ms + chance.between(0, weather.jitter_ms);
                if chance.per_mille(weather.overtaken) {
                    delay += chance.between(0, 3 * (weather.delay_ms + weather.jitter_ms));
                }
                Duration::from_millis(delay)
            })
            .collect()
    }

    /// How long a piece of a stream takes.
    fn piece(&self) -> Duration {
        let weather = *self.weather.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let mut delay = weather.delay_ms + chance.between(0, weather.jitter_ms);
        if chance.per_mille(weather.stalled) {
            delay += chance.between(weather.stall_ms / 4, weather.stall_ms);
        }
        Duration::from_millis(delay)
    }

    /// How many bytes are taken together.
    fn piece_bytes(&self) -> usize {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        chance.between(1, 8192) as usize
    }

    async fn healed(&self) {
        let mut is_cut = self.is_cut.subscribe();
        let _ = is_cut.wait_for(|is_cut| !is_cut).await;
    }
}

/// What goes to its port goes through it to the host behind it, and the answers back.
pub(crate) struct Rough {
    port: u16,
    sky: Arc<Sky>,
    over: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Rough {
    /// In front of the host that listens at this address: `/ip4/127.0.0.1/udp/4101/quic-v1` or `/ip4/127.0.0.1/tcp/4101`, with or without
    /// an id. Calm to begin with.
    pub(crate) fn before(address: &str, seed: u64) -> Self {
        let parts: Vec<_> = address.split('/').collect();
        let ip: Ipv4Addr = parts[2].parse().unwrap();
        let host = SocketAddr::from((ip, parts[4].parse().unwrap()));
        let is_tcp = parts[3] == "tcp";
        let sky = Arc::new(Sky {
            weather: Mutex::new(Weather::CALM),
            chance: Mutex::new(Chance::new(seed)),
            is_cut: watch::channel(false).0,
            broken: watch::channel(0).0,
            moved: watch::channel(0).0,
            under_way: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
        });
        let (told, port) = std::sync::mpsc::channel();
        let (over, ended) = tokio::sync::oneshot::channel();
        let shared = sky.clone();
        // Of its own, so that no host waits for it, nor it for them.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let carrying = async {
                    match is_tcp {
                        true => {
                            let front = TcpListener::bind((FRONT, 0)).await.unwrap();
                            told.send(front.local_addr().unwrap().port()).unwrap();
                            streams(front, host, shared).await;
                        }
                        false => {
                            let front = UdpSocket::bind((FRONT, 0)).await.unwrap();
                            told.send(front.local_addr().unwrap().port()).unwrap();
                            datagrams(Arc::new(front), host, shared).await;
                        }
                    }
                };
                tokio::select! {
                    () = carrying => {}
                    _ = ended => {}
                }
            });
        });
        Self {
            port: port.recv().unwrap(),
            sky,
            over: Some(over),
        }
    }

    /// The address of the host behind it, as seen through it.
    pub(crate) fn address(&self, address: &str) -> String {
        let mut parts: Vec<_> = address.split('/').map(str::to_owned).collect();
        parts[2] = FRONT.to_string();
        parts[4] = self.port.to_string();
        parts.join("/")
    }

    pub(crate) fn set(&self, weather: Weather) {
        *self.sky.weather.lock().unwrap() = weather;
    }

    /// From now on nothing comes through: datagrams are lost, streams stand still.
    pub(crate) fn cut(&self) {
        self.sky.is_cut.send_replace(true);
    }

    /// From now on it does again.
    pub(crate) fn heal(&self) {
        self.sky.is_cut.send_replace(false);
    }

    /// Breaks off every connection of TCP, with what is under way on it.
    pub(crate) fn break_off(&self) {
        self.sky.broken.send_modify(|times| *times += 1);
    }

    /// Whoever comes through it over UDP has another address from now on, as a router does that lost its table.
    pub(crate) fn move_on(&self) {
        self.sky.moved.send_modify(|times| *times += 1);
    }
}

impl Drop for Rough {
    fn drop(&mut self) {
        drop(self.over.take());
    }
}

// -- UDP

struct Flow {
    moved: u64,
    behind: Arc<UdpSocket>,
    back: tokio::task::JoinHandle<()>,
}

async fn datagrams(front: Arc<UdpSocket>, host: SocketAddr, sky: Arc<Sky>) {
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut datagram = vec![0; 1 << 16];
    loop {
        let Ok((length, from)) = front.recv_from(&mut datagram).await else {
            continue;
        };
        let moved = *sky.moved.borrow();
        if flows.get(&from).is_none_or(|flow| flow.moved != moved) {
            let behind = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
            let (back, front, sky) = (behind.clone(), front.clone(), sky.clone());
            let back = tokio::spawn(async move {
                let mut datagram = vec![0; 1 << 16];
                loop {
                    if let Ok(length) = back.recv(&mut datagram).await {
                        carry(&sky, &front, &datagram[..length], from);
                    }
                }
            });
            let flow = Flow {
                moved,
                behind,
                back,
            };
            if let Some(old) = flows.insert(from, flow) {
                old.back.abort();
            }
        }
        carry(&sky, &flows[&from].behind, &datagram[..length], host);
    }
}

fn carry(sky: &Arc<Sky>, through: &Arc<UdpSocket>, datagram: &[u8], to: SocketAddr) {
    for delay in sky.datagram() {
        let Ok(place) = sky.under_way.clone().try_acquire_owned() else {
            return;
        };
        let (sky, through, datagram) = (sky.clone(), through.clone(), datagram.to_vec());
        tokio::spawn(async move {
            sleep(delay).await;
            if !*sky.is_cut.borrow() {
                let _ = through.send_to(&datagram, to).await;
            }
            drop(place);
        });
    }
}

// -- TCP

async fn streams(front: TcpListener, host: SocketAddr, sky: Arc<Sky>) {
    loop {
        let Ok((near, _)) = front.accept().await else {
            continue;
        };
        let sky = sky.clone();
        tokio::spawn(async move {
            let mut broken = sky.broken.subscribe();
            sky.healed().await;
            let Ok(far) = TcpStream::connect(host).await else {
                return;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            tokio::select! {
                () = pump(near_in, far_out, &sky) => {}
                () = pump(far_in, near_out, &sky) => {}
                _ = broken.changed() => {}
            }
            // Both ends are closed, and what was under way is gone.
        });
    }
}

/// Carries one way, until it ends.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    sky: &Sky,
) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let taking = async move {
        let mut due = Instant::now();
        loop {
            let mut piece = vec![0; sky.piece_bytes()];
            match from.read(&mut piece).await {
                Ok(length) if length > 0 => piece.truncate(length),
                _ => return,
            }
            due = due.max(Instant::now() + sky.piece());
            if sender.send((due, piece)).await.is_err() {
                return;
            }
        }
    };
    let giving = async move {
        while let Some((due, piece)) = under_way.recv().await {
            sleep_until(due).await;
            sky.healed().await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    // What was taken is given before the end is.
    tokio::join!(taking, giving);
}
