//! A broker that does on demand what a real one will not: it speaks the few old requests of the crate `kafka`, and those that
//! txrelay asks by hand, and follows a script of faults. One topic, `t`, of plain records.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub const TOPIC: &str = "t";
pub const FETCH: i16 = 1;
pub const OFFSET_COMMIT: i16 = 8;

/// What happens to one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The answer comes after this time.
    Late(Duration),
    /// This partition's part of the answer is an error.
    Partition(i32, i16),
    /// The answer begins so many offsets too far on, as if it were another request's.
    Ahead(i64),
    /// Bytes that are no answer, and then the connection is closed.
    Raw(Vec<u8>),
    /// Half of the answer, and the connection is closed.
    Half,
    /// The connection is closed.
    Close,
    /// No answer to this request, ever.
    Mute,
}

/// One partition: its first offset and its values.
#[derive(Debug, Clone, Default)]
struct Log {
    low: i64,
    values: Vec<Vec<u8>>,
}

#[derive(Default)]
struct State {
    address: String,
    logs: BTreeMap<i32, Log>,
    script: VecDeque<(i16, Fault)>,
    committed: BTreeMap<i32, i64>,
    /// Offsets that fetches asked for.
    fetched: Vec<(i32, i64)>,
}

/// It serves as long as the process runs.
#[derive(Clone)]
pub struct FakeBroker(Arc<Mutex<State>>);

impl FakeBroker {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let broker = Self(Arc::default());
        broker.state().address = listener.local_addr().expect("its number").to_string();
        let serving = broker.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (broker, connection) = (serving.clone(), connection.expect("a connection"));
                // Either side may close it at any time.
                std::thread::spawn(move || drop(broker.serve(connection)));
            }
        });
        broker
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn address(&self) -> String {
        self.state().address.clone()
    }

    /// A partition of `n` records from `low` on; record 7 of partition 1 is `1-7`.
    pub fn partition(&self, partition: i32, low: i64, n: i64) -> &Self {
        let values = (low..low + n).map(|offset| format!("{partition}-{offset}").into_bytes()).collect();
        self.state().logs.insert(partition, Log { low, values });
        self
    }

    /// What happens to the next request of this key; of several, one after the other.
    pub fn next(&self, key: i16, fault: Fault) -> &Self {
        self.state().script.push_back((key, fault));
        self
    }

    pub fn commit(&self, partition: i32, offset: i64) -> &Self {
        self.state().committed.insert(partition, offset);
        self
    }

    pub fn committed(&self, partition: i32) -> Option<i64> {
        self.state().committed.get(&partition).copied()
    }

    /// Offsets that were asked of a partition.
    pub fn fetched(&self, partition: i32) -> Vec<i64> {
        self.state().fetched.iter().filter(|(p, _)| *p == partition).map(|(_, offset)| *offset).collect()
    }

    fn serve(&self, mut connection: TcpStream) -> std::io::Result<()> {
        loop {
            let mut size = [0; 4];
            connection.read_exact(&mut size)?;
            let mut request = vec![0; u32::from_be_bytes(size) as usize];
            connection.read_exact(&mut request)?;
            let mut read = In(&request);
            let (key, version) = (read.i16(), read.i16());
            let correlation = read.bytes(4).to_vec();
            read.string();
            let fault = {
                let mut state = self.state();
                let found = state.script.iter().position(|(of, _)| *of == key);
                found.and_then(|n| state.script.remove(n)).map(|(_, fault)| fault)
            };
            let body = self.answer(key, version, &mut read, fault.as_ref());
            let mut frame = ((correlation.len() + body.len()) as u32).to_be_bytes().to_vec();
            frame.extend(correlation);
            frame.extend(body);
            match fault {
                Some(Fault::Late(time)) => std::thread::sleep(time),
                Some(Fault::Raw(bytes)) => {
                    connection.write_all(&bytes)?;
                    return Ok(());
                }
                Some(Fault::Half) => {
                    connection.write_all(&frame[..frame.len() / 2])?;
                    return Ok(());
                }
                Some(Fault::Close) => return Ok(()),
                Some(Fault::Mute) => continue,
                Some(Fault::Partition(..) | Fault::Ahead(_)) | None => {}
            }
            connection.write_all(&frame)?;
        }
    }

    fn answer(&self, key: i16, version: i16, read: &mut In<'_>, fault: Option<&Fault>) -> Vec<u8> {
        match key {
            FETCH => self.fetch(read, fault),
            2 => self.offsets(version, read),
            3 => self.metadata(version),
            OFFSET_COMMIT => self.take_commit(read, !matches!(fault, Some(Fault::Mute))),
            9 => self.give_committed(),
            10 => self.coordinator(),
            18 => versions(),
            32 => Out::default().i32(0).i32(1).i16(29).i16(-1).i8(2).string(TOPIC).i32(0).0,
            _ => Vec::new(),
        }
    }

    fn port(&self) -> i32 {
        self.state().address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port")
    }

    fn metadata(&self, version: i16) -> Vec<u8> {
        let partitions: Vec<i32> = self.state().logs.keys().copied().collect();
        let mut out = Out::default();
        if version >= 3 {
            out = out.i32(0);
        }
        out = out.i32(1).i32(1).string("127.0.0.1").i32(self.port());
        if version >= 1 {
            // No rack, the cluster's id, the controller.
            out = out.i16(-1).string("fake").i32(1);
        }
        out = out.i32(1).i16(0).string(TOPIC);
        if version >= 1 {
            out = out.i8(0);
        }
        out = out.i32(partitions.len() as i32);
        for partition in partitions {
            out = out.i16(0).i32(partition).i32(1).i32(1).i32(1).i32(1).i32(1);
        }
        out.0
    }

    fn offsets(&self, version: i16, read: &mut In<'_>) -> Vec<u8> {
        read.bytes(8); // replica, one topic
        read.string();
        let asked: Vec<(i32, i64)> = (0..read.i32())
            .map(|_| {
                let (partition, time) = (read.i32(), read.i64());
                if version == 0 {
                    read.i32();
                }
                (partition, time)
            })
            .collect();
        let mut out = Out::default().i32(1).string(TOPIC).i32(asked.len() as i32);
        for (partition, time) in asked {
            let log = self.state().logs.get(&partition).cloned().unwrap_or_default();
            let offset = if time == -2 { log.low } else { log.low + log.values.len() as i64 };
            out = out.i32(partition).i16(0);
            out = if version == 0 { out.i32(1) } else { out.i64(-1) };
            out = out.i64(offset);
        }
        out.0
    }

    fn fetch(&self, read: &mut In<'_>, fault: Option<&Fault>) -> Vec<u8> {
        read.i32();
        let max_wait = read.i32();
        read.bytes(8); // least bytes, one topic
        read.string();
        let mut asked: Vec<(i32, i64, i32)> = (0..read.i32()).map(|_| (read.i32(), read.i64(), read.i32())).collect();
        // Those with an error behind those without.
        asked.sort_unstable();
        let mut out = Out::default().i32(1).string(TOPIC).i32(asked.len() as i32);
        let mut is_empty = true;
        for (partition, offset, size) in asked {
            let log = {
                let mut state = self.state();
                state.fetched.push((partition, offset));
                state.logs.get(&partition).cloned().unwrap_or_default()
            };
            let high = log.low + log.values.len() as i64;
            let (mut error, mut from) = (0, offset);
            match fault {
                Some(Fault::Partition(of, code)) if *of == partition => error = *code,
                Some(Fault::Ahead(by)) => from += by,
                _ if !(log.low..=high).contains(&offset) => error = 1,
                _ => {}
            }
            let mut records = Vec::new();
            for at in from.max(log.low)..high {
                records.extend(message(at, &log.values[(at - log.low) as usize]));
            }
            if error != 0 {
                records.clear();
            }
            records.truncate(usize::try_from(size).unwrap_or(0));
            is_empty &= records.is_empty() && error == 0;
            out = out.i32(partition).i16(error).i64(if error == 0 { high } else { -1 }).i32(records.len() as i32);
            out.0.extend(records);
        }
        if is_empty {
            std::thread::sleep(Duration::from_millis(u64::try_from(max_wait).unwrap_or(0).min(100)));
        }
        out.0
    }

    fn take_commit(&self, read: &mut In<'_>, takes: bool) -> Vec<u8> {
        read.string();
        read.i32();
        read.string();
        read.i32();
        read.string();
        let n = read.i32();
        let mut out = Out::default().i32(1).string(TOPIC).i32(n);
        for _ in 0..n {
            let (partition, offset) = (read.i32(), read.i64());
            read.i64();
            read.string();
            if takes {
                self.state().committed.insert(partition, offset);
            }
            out = out.i32(partition).i16(0);
        }
        out.0
    }

    fn give_committed(&self) -> Vec<u8> {
        let state = self.state();
        let mut out = Out::default().i32(1).string(TOPIC).i32(state.logs.len() as i32);
        for partition in state.logs.keys() {
            out = out.i32(*partition).i64(state.committed.get(partition).copied().unwrap_or(-1)).string("").i16(0);
        }
        out.0
    }

    fn coordinator(&self) -> Vec<u8> {
        Out::default().i16(0).i32(1).string("127.0.0.1").i32(self.port()).0
    }
}

/// As Kafka 3.9 lists those that are served here.
fn versions() -> Vec<u8> {
    let listed = [(1, 0, 11), (2, 0, 5), (3, 0, 8), (8, 0, 7), (9, 0, 5), (10, 0, 2), (18, 0, 2), (32, 0, 2)];
    listed
        .iter()
        .fold(Out::default().i16(0).i32(listed.len() as i32), |out, (key, low, high)| out.i16(*key).i16(*low).i16(*high))
        .0
}

/// A record in the oldest format.
fn message(offset: i64, value: &[u8]) -> Vec<u8> {
    let body = {
        let mut body = Out::default().i8(0).i8(0).i32(-1).i32(value.len() as i32).0;
        body.extend(value);
        body
    };
    let crc = !body.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    });
    let mut out = Out::default().i64(offset).i32(body.len() as i32 + 4).0;
    out.extend(crc.to_be_bytes());
    out.extend(body);
    out
}

#[derive(Default)]
pub(super) struct Out(pub(super) Vec<u8>);

impl Out {
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    pub(super) fn i8(self, n: i8) -> Self {
        self.raw(&n.to_be_bytes())
    }
    pub(super) fn i16(self, n: i16) -> Self {
        self.raw(&n.to_be_bytes())
    }
    pub(super) fn i32(self, n: i32) -> Self {
        self.raw(&n.to_be_bytes())
    }
    fn i64(self, n: i64) -> Self {
        self.raw(&n.to_be_bytes())
    }
    pub(super) fn string(self, text: &str) -> Self {
        self.i16(text.len() as i16).raw(text.as_bytes())
    }
}

pub(super) struct In<'a>(pub(super) &'a [u8]);

impl<'a> In<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head
    }
    pub(super) fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.bytes(2).try_into().expect("two"))
    }
    pub(super) fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.bytes(4).try_into().expect("four"))
    }
    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.bytes(8).try_into().expect("eight"))
    }
    pub(super) fn string(&mut self) {
        let n = self.i16();
        self.bytes(usize::try_from(n).unwrap_or(0));
    }
}
