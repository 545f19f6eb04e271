//! Two networks with a router between them, each a network namespace. That takes root and `ip`.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// `left` is 10.78.1.2, `right` 10.78.2.2.
pub(crate) struct Network {
    pub(crate) left: String,
    middle: String,
    pub(crate) right: String,
}

fn run(words: &str) -> Result<(), String> {
    let mut split = words.split(' ');
    let ran = Command::new(split.next().unwrap_or_default())
        .args(split)
        .output()
        .map_err(|error| format!("{words}: {error}"))?;
    match ran.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
            Err(format!("{words}: {said}"))
        }
    }
}

impl Network {
    /// Or why there is none here.
    pub(crate) fn build() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("agj{}-{number}{side}", std::process::id());
        let network = Self {
            left: name("l"),
            middle: name("m"),
            right: name("r"),
        };
        let middle = &network.middle;
        for namespace in [&network.left, middle, &network.right] {
            run(&format!("ip netns add {namespace}"))?;
            run(&format!("ip -n {namespace} link set lo up"))?;
        }
        for (net, outer, at_router) in [(1, &network.left, "left"), (2, &network.right, "right")] {
            run(&format!(
                "ip link add eth0 netns {outer} type veth peer name {at_router} netns {middle}"
            ))?;
            run(&format!("ip -n {outer} addr add 10.78.{net}.2/24 dev eth0"))?;
            run(&format!(
                "ip -n {middle} addr add 10.78.{net}.1/24 dev {at_router}"
            ))?;
            run(&format!("ip -n {outer} link set eth0 up"))?;
            run(&format!("ip -n {middle} link set {at_router} up"))?;
            run(&format!(
                "ip -n {outer} route add default via 10.78.{net}.1"
            ))?;
        }
        network.try_forward(true)?;
        Ok(network)
    }

    fn try_forward(&self, on: bool) -> Result<(), String> {
        let set = format!("net.ipv4.ip_forward={}", u8::from(on));
        run(&format!("ip netns exec {} sysctl -qw {set}", self.middle))
    }

    /// Whether the router lets anything through. What it doesn't is lost without a word.
    pub(crate) fn forward(&self, on: bool) {
        self.try_forward(on).expect("the router can be set");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.left, &self.middle, &self.right] {
            let _ = run(&format!("ip netns del {namespace}"));
        }
    }
}
