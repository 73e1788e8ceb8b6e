//! A host to which connections begin and never stand, and one that refuses them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

/// A host that drops what is sent to it: a listener whose queue is full, for which the kernel drops further SYNs.
pub struct Blackhole {
    pub address: String,
    _listener: OwnedFd,
    _queued: Vec<std::net::TcpStream>,
}

impl Blackhole {
    pub fn new() -> Self {
        let Nowhere { address, socket: listener } = Nowhere::new();
        listen(&listener, 0).expect("it listens");
        let address: SocketAddr = address.parse().expect("an address");
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
            assert!(queued.len() < 100, "the queue is never full");
        }
        Self { address: address.to_string(), _listener: listener, _queued: queued }
    }
}

/// A port at which nobody listens, and nobody else will as long as this lives.
pub struct Nowhere {
    pub address: String,
    socket: OwnedFd,
}

impl Nowhere {
    pub fn new() -> Self {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let address = SocketAddrV4::try_from(getsockname(&socket).expect("its name")).expect("an address");
        Self { address: address.to_string(), socket }
    }
}
