//! The one place for `unsafe`: what librdkafka can do and the safe interface of rdkafka 0.39 cannot.
//!
//! - Topic ids. A topic deleted and created again is noticed by nothing else: offsets go on as if it were the old one.
//! - A topic's settings, asked on the connections that are there; the safe way is a second client with threads of its own.
//! - Headers whose names are not UTF-8. rdkafka unwraps the conversion: one such header would end the consumer thread, at
//!   every restart again.
//! - The cluster's id without a leak: rdkafka never frees the copy that it is given, and this one is asked for ever.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::BorrowedMessage;
use uuid::Uuid;

use super::TopicInfo;
use crate::core::record::HeaderValue;

/// The longest that one question may keep the polling thread.
const PATIENCE: Duration = Duration::from_secs(3);

/// Something of librdkafka's that has to be given back, whichever way the function is left.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    /// `destroy` must be the function that librdkafka documents for what `it` is.
    fn new(it: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, String> {
        if it.is_null() { Err("librdkafka made none".into()) } else { Ok(Self(it, destroy)) }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made by librdkafka and not null (`new`), owned by this value alone, destroyed once, by its own function.
        unsafe { (self.1)(self.0) }
    }
}

/// Asks the cluster for ids and partition counts, in the order of `topics`. Waits 3.5 s at most.
pub(super) fn describe<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &[Arc<str>],
    timeout: Duration,
) -> Result<Vec<TopicInfo>, String> {
    let names = topics.iter().map(|t| CString::new(&**t)).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let mut names: Vec<*const c_char> = names.iter().map(|n| n.as_ptr()).collect();
    let client = consumer.client().native_ptr();

    // SAFETY: `client` lives as long as `consumer`; `names` holds as many pointers to strings as is said, and librdkafka
    // copies them; the collection is valid until the end of this block, and librdkafka needs it no longer.
    let answer = unsafe {
        let collection = Owned::new(
            rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            rd::rd_kafka_TopicCollection_destroy,
        )?;
        ask(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, timeout, |options, queue| {
            rd::rd_kafka_DescribeTopics(client, collection.0, options, queue);
        })?
    };

    // SAFETY: `answer` is an event that is not null; its error text and its result live as long as it does. The result is
    // null for an event of another kind. librdkafka gives the array and says its length.
    let found = unsafe {
        if rd::rd_kafka_event_error(answer.0) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(rd::rd_kafka_event_error_string(answer.0)));
        }
        let result = rd::rd_kafka_event_DescribeTopics_result(answer.0);
        if result.is_null() {
            return Err("the answer is of another kind".into());
        }
        let mut count = 0;
        let first = rd::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if first.is_null() || count != topics.len() {
            return Err(format!("the answer names {count} topics of {}", topics.len()));
        }
        std::slice::from_raw_parts(first, count)
    };
    // SAFETY: each is a description out of `answer`, which is still alive, in the order asked (librdkafka sorts them so).
    topics.iter().zip(found).map(|(topic, found)| unsafe { topic_info(topic, *found) }).collect()
}

/// Sends a question by `send`, which is given options and a queue for the answer. Waits 3.5 s at most.
///
/// # Safety
/// `client` is alive, and `send` asks it with these options and this queue.
unsafe fn ask(
    client: *mut rd::rd_kafka_t,
    what: rd::rd_kafka_admin_op_t,
    timeout: Duration,
    send: impl FnOnce(*const rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
) -> Result<Owned<rd::rd_kafka_event_t>, String> {
    let timeout_ms = i32::try_from(timeout.min(PATIENCE).as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: by this function's own condition; the error buffer is as long as is said; options and queue are valid until the
    // end of this function, and librdkafka keeps references of its own for a request that is still under way then.
    unsafe {
        let options = Owned::new(rd::rd_kafka_AdminOptions_new(client, what), rd::rd_kafka_AdminOptions_destroy)?;
        let mut error: [c_char; 256] = [0; 256];
        rd::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, error.as_mut_ptr(), error.len());
        let queue = Owned::new(rd::rd_kafka_queue_new(client), rd::rd_kafka_queue_destroy)?;
        send(options.0, queue.0);
        Owned::new(rd::rd_kafka_queue_poll(queue.0, timeout_ms + 500), rd::rd_kafka_event_destroy)
            .map_err(|_| format!("no answer within {timeout_ms} ms"))
    }
}

/// Asks for a topic's settings by DescribeConfigs. `None`: this user may not ask. Waits 3.5 s at most.
pub(super) fn settings<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<HashMap<String, String>>, String> {
    let name = CString::new(topic).map_err(|e| e.to_string())?;
    let client = consumer.client().native_ptr();
    // SAFETY: `client` lives as long as `consumer`; the name is copied; the resource is valid until the end of this block, and
    // librdkafka copies it, too.
    let answer = unsafe {
        let resource = Owned::new(
            rd::rd_kafka_ConfigResource_new(rd::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr()),
            rd::rd_kafka_ConfigResource_destroy,
        )?;
        ask(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, timeout, |options, queue| {
            let mut resources = [resource.0];
            rd::rd_kafka_DescribeConfigs(client, resources.as_mut_ptr(), resources.len(), options, queue);
        })?
    };
    // SAFETY: as in `describe`: what the event holds lives as long as it does; each array is as long as librdkafka says, and
    // an entry's name and value are null or C strings.
    unsafe {
        if rd::rd_kafka_event_error(answer.0) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(rd::rd_kafka_event_error_string(answer.0)));
        }
        let result = rd::rd_kafka_event_DescribeConfigs_result(answer.0);
        if result.is_null() {
            return Err("the answer is of another kind".into());
        }
        let mut count = 0;
        let first = rd::rd_kafka_DescribeConfigs_result_resources(result, &mut count);
        if first.is_null() || count != 1 {
            return Err(format!("the answer is about {count} topics"));
        }
        match rd::rd_kafka_ConfigResource_error(*first) {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED | Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED => {
                return Ok(None);
            }
            _ => return Err(text(rd::rd_kafka_ConfigResource_error_string(*first))),
        }
        let entries = rd::rd_kafka_ConfigResource_configs(*first, &mut count);
        if entries.is_null() {
            return Ok(Some(HashMap::new()));
        }
        let entries = std::slice::from_raw_parts(entries, count);
        let pair = |entry: &*const _| (text(rd::rd_kafka_ConfigEntry_name(*entry)), text(rd::rd_kafka_ConfigEntry_value(*entry)));
        Ok(Some(entries.iter().map(pair).collect()))
    }
}

/// # Safety
/// `found` points to a description whose event is alive.
unsafe fn topic_info(topic: &Arc<str>, found: *const rd::rd_kafka_TopicDescription_t) -> Result<TopicInfo, String> {
    // SAFETY: by this function's own condition; an id, where there is one, and the array of partitions, which is as long as librdkafka
    // says, live as long as the description.
    unsafe {
        let error = rd::rd_kafka_TopicDescription_error(found);
        if !error.is_null() {
            return match rd::rd_kafka_error_code(error) {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => Err(format!("{topic}: an error without a code")),
                Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
                    Ok(TopicInfo { topic: Arc::clone(topic), id: None, partitions: None, leaderless: Vec::new() })
                }
                _ => Err(format!("{topic}: {}", text(rd::rd_kafka_error_string(error)))),
            };
        }
        let mut count = 0;
        let first = rd::rd_kafka_TopicDescription_partitions(found, &mut count);
        let partitions = if first.is_null() { &[][..] } else { std::slice::from_raw_parts(first, count) };
        let leaderless = partitions
            .iter()
            .filter(|partition| rd::rd_kafka_TopicPartitionInfo_leader(**partition).is_null())
            .map(|partition| rd::rd_kafka_TopicPartitionInfo_partition(*partition))
            .collect();
        let id = rd::rd_kafka_TopicDescription_topic_id(found);
        let id = if id.is_null() {
            Uuid::nil()
        } else {
            let (high, low) = (rd::rd_kafka_Uuid_most_significant_bits(id), rd::rd_kafka_Uuid_least_significant_bits(id));
            Uuid::from_u64_pair(high.cast_unsigned(), low.cast_unsigned())
        };
        // Brokers before 2.8 know no ids; librdkafka then gives zeros.
        let id = Some(id).filter(|id| !id.is_nil());
        Ok(TopicInfo { topic: Arc::clone(topic), id, partitions: i32::try_from(count).ok(), leaderless })
    }
}

/// The cluster's id as the last answer of any broker said it; waits for one up to `timeout`, and asks nothing itself.
pub(super) fn cluster_id<C: ConsumerContext>(consumer: &BaseConsumer<C>, timeout: Duration) -> Option<String> {
    let client = consumer.client().native_ptr();
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `client` lives as long as `consumer`; the string is ours, is copied, and is freed once by librdkafka's `free`.
    unsafe {
        let id = rd::rd_kafka_clusterid(client, timeout_ms);
        if id.is_null() {
            return None;
        }
        let copy = text(id);
        rd::rd_kafka_mem_free(client, id.cast());
        Some(copy)
    }
}

/// A record's headers in their order. A name that is not UTF-8 gets replacement characters; values are the exact bytes, and
/// null stays apart from empty.
pub(super) fn headers(message: &BorrowedMessage<'_>) -> Vec<(String, HeaderValue)> {
    let mut list = ptr::null_mut();
    // SAFETY: the message is alive, and so are its headers, which it owns; `list` is set when there is no error.
    let count = unsafe {
        // "None" is an error, too. A block that cannot be parsed cannot be told from it; brokers refuse to take one.
        if rd::rd_kafka_message_headers(message.ptr(), &mut list) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Vec::new();
        }
        rd::rd_kafka_header_cnt(list)
    };
    let mut headers = Vec::with_capacity(count);
    for i in 0..count {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: as above; without an error `name` is a C string, and `value` is null or points to `size` bytes, all owned
        // by the message and copied here.
        unsafe {
            if rd::rd_kafka_header_get_all(list, i, &mut name, &mut value, &mut size) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                break;
            }
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size).to_vec());
            headers.push((text(name), value));
        }
    }
    headers
}

/// # Safety
/// `s` is null or points to a C string that lives during the call.
unsafe fn text(s: *const c_char) -> String {
    if s.is_null() {
        return String::new();
    }
    // SAFETY: by this function's own condition.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}
