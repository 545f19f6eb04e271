//! Two networks and a router between them, each a network namespace; and the hosts that run there.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::role;

const PATIENCE: Duration = Duration::from_secs(60);

/// `left` is 10.77.1.2, `right` 10.77.2.2; between them is `middle`, with 10.77.1.1 and 10.77.2.1.
pub(crate) struct Network {
    left: String,
    middle: String,
    right: String,
}

fn run(words: &[&str]) -> Result<(), String> {
    let ran = Command::new(words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| format!("{}: {error}", words[0]))?;
    match ran.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&ran.stderr).trim().to_string();
            Err(format!("{}: {said}", words.join(" ")))
        }
    }
}

impl Network {
    pub(crate) fn build() -> Result<Network, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("agd{}-{number}{side}", std::process::id());
        let network = Network {
            left: name("l"),
            middle: name("m"),
            right: name("r"),
        };
        for namespace in [&network.left, &network.middle, &network.right] {
            run(&["ip", "netns", "add", namespace])?;
            run(&["ip", "-n", namespace, "link", "set", "lo", "up"])?;
        }
        for (net, outer, at_router) in
            [("1", &network.left, "left"), ("2", &network.right, "right")]
        {
            let middle = &network.middle;
            let (here, router) = (format!("10.77.{net}.2/24"), format!("10.77.{net}.1/24"));
            run(&[
                "ip", "link", "add", "eth0", "netns", outer, "type", "veth", "peer", "name",
                at_router, "netns", middle,
            ])?;
            run(&["ip", "-n", outer, "addr", "add", &here, "dev", "eth0"])?;
            run(&["ip", "-n", middle, "addr", "add", &router, "dev", at_router])?;
            run(&["ip", "-n", outer, "link", "set", "eth0", "up"])?;
            run(&["ip", "-n", middle, "link", "set", at_router, "up"])?;
            let gateway = format!("10.77.{net}.1");
            run(&[
                "ip", "-n", outer, "route", "add", "default", "via", &gateway,
            ])?;
        }
        // mDNS goes where multicast is routed to.
        let multicast = ["route", "add", "224.0.0.0/4", "dev"];
        run(&[&["ip", "-n", &network.left], &multicast[..], &["eth0"]].concat())?;
        run(&[&["ip", "-n", &network.middle], &multicast[..], &["left"]].concat())?;
        network.try_forward(true)?;
        Ok(network)
    }

    fn try_forward(&self, on: bool) -> Result<(), String> {
        let set = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(on));
        run(&["ip", "netns", "exec", &self.middle, "sh", "-c", &set])
    }

    /// Whether the router lets anything through. What it doesn't is lost without a word.
    pub(crate) fn forward(&self, on: bool) {
        self.try_forward(on).expect("the router can be set");
    }

    /// 20 Mbit/s both ways with a queue of 100 ms; with latency and loss where this kernel has them.
    pub(crate) fn bottleneck(&self) {
        for side in ["left", "right"] {
            let shape = ["rate", "20mbit", "burst", "32kbit", "latency", "100ms"];
            let on = ["tc", "-n", &self.middle, "qdisc", "add", "dev", side];
            if let Err(why) = run(&[&on[..], &["root", "handle", "1:", "tbf"], &shape[..]].concat())
            {
                eprintln!("no bottleneck: {why}");
                return;
            }
            let rough = ["parent", "1:", "netem", "delay", "20ms", "loss", "1%"];
            if let Err(why) = run(&[&on[..], &rough[..]].concat()) {
                eprintln!("skipped: no latency and no loss, only the bottleneck ({why})");
            }
        }
    }

    pub(crate) fn left(&self, words: &[&str]) -> Node {
        Node::start(&self.left, words)
    }

    pub(crate) fn middle(&self, words: &[&str]) -> Node {
        Node::start(&self.middle, words)
    }

    pub(crate) fn right(&self, words: &[&str]) -> Node {
        Node::start(&self.right, words)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.left, &self.middle, &self.right] {
            let _ = run(&["ip", "netns", "del", namespace]);
        }
    }
}

/// A host in one of the namespaces; ends with this.
pub(crate) struct Node {
    child: Child,
    orders: ChildStdin,
    said: Receiver<String>,
}

impl Node {
    fn start(namespace: &str, words: &[&str]) -> Node {
        let own = std::env::current_exe().expect("this binary");
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(own)
            .args(["--exact", "host_of_another_test", "--nocapture"])
            .env(role::WORDS, words.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let orders = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (tell, said) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(line) = line.split("net: ").nth(1) {
                    let _ = tell.send(line.to_string());
                }
            }
        });
        Node {
            child,
            orders,
            said,
        }
    }

    /// Waits until it says this, and gives the rest of the line.
    pub(crate) fn says(&mut self, word: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self
                .said
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("it never said '{word}'"));
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_string();
            }
        }
    }

    pub(crate) fn order(&mut self, word: &str) {
        writeln!(self.orders, "{word}").expect("it listens");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
