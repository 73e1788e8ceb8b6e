//! A host to which connections begin and never stand.

use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

/// A host that drops what is sent to it: a listener whose queue is full, for which the kernel drops further SYNs.
pub struct Blackhole {
    pub address: String,
    _listener: std::os::fd::OwnedFd,
    _queued: Vec<std::net::TcpStream>,
}

impl Blackhole {
    pub fn new() -> Self {
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&listener, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)).expect("bound");
        listen(&listener, 0).expect("it listens");
        let address = std::net::SocketAddrV4::try_from(getsockname(&listener).expect("its name")).expect("an address");
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address.into(), Duration::from_millis(300)) {
            queued.push(stream);
            assert!(queued.len() < 100, "the queue is never full");
        }
        Self { address: address.to_string(), _listener: listener, _queued: queued }
    }
}
