//! Rights on a broker with an authorizer, given and taken away by Kafka's own requests: a console tool takes seconds for each.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::fake_broker::{In, Out};
use super::{Broker, LIMIT};

/// A right on one topic or group.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a> {
    /// As Kafka writes it: `User:name`.
    pub user: &'a str,
    pub on: On<'a>,
    pub to: To,
}

#[derive(Debug, Clone, Copy)]
pub enum On<'a> {
    Topic(&'a str),
    Group(&'a str),
}

/// Kafka's numbers.
#[derive(Debug, Clone, Copy)]
pub enum To {
    Read = 3,
    Describe = 8,
}

const CREATE: i16 = 30;
const DELETE: i16 = 31;
const LITERAL: i8 = 3;
const ALLOW: i8 = 3;

impl Right<'_> {
    fn resource(&self, out: Out) -> Out {
        match self.on {
            On::Topic(name) => out.i8(2).string(name),
            On::Group(name) => out.i8(3).string(name),
        }
    }

    fn encoded(&self) -> Vec<u8> {
        self.resource(Out::default().i32(1)).i8(LITERAL).string(self.user).string("*").i8(self.to as i8).i8(ALLOW).0
    }
}

impl Broker {
    #[track_caller]
    pub fn grant(&self, right: &Right<'_>) {
        let answer = self.ask(CREATE, right.encoded());
        let mut read = In(&answer);
        read.bytes(4);
        assert_eq!((read.i32(), read.i16()), (1, 0), "{right:?}: {}", String::from_utf8_lossy(&answer));
    }

    #[track_caller]
    pub fn revoke(&self, right: &Right<'_>) {
        // A filter that only this one passes.
        let answer = self.ask(DELETE, right.encoded());
        let mut read = In(&answer);
        read.bytes(4);
        assert_eq!((read.i32(), read.i16()), (1, 0), "{right:?}: {}", String::from_utf8_lossy(&answer));
        read.string();
        assert_eq!(read.i32(), 1, "{right:?} was not given");
    }

    /// In version 1, whose two requests have the same fields in the same order.
    #[track_caller]
    fn ask(&self, key: i16, body: Vec<u8>) -> Vec<u8> {
        let mut socket = TcpStream::connect(&self.address).expect("the broker listens");
        socket.set_read_timeout(Some(LIMIT)).expect("a bound");
        let frame = Out::default().i16(key).i16(1).i32(1).string("test").raw(&body).0;
        socket.write_all(&Out::default().i32(frame.len() as i32).raw(&frame).0).expect("written");
        let mut size = [0; 4];
        socket.read_exact(&mut size).expect("an answer");
        let mut answer = vec![0; u32::from_be_bytes(size) as usize];
        socket.read_exact(&mut answer).expect("an answer");
        answer.split_off(4)
    }
}
