//! `bed http`: the few requests that scripts make, without asking for curl. The client is shared by the other subcommands.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

#[derive(clap::Args)]
pub struct Args {
    method: String,
    url: String,
    body: Option<String>,
    /// Repeat until the answer is 2xx, for at most this long
    #[arg(long, value_parser = crate::shared::duration)]
    retry: Option<Duration>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let result = request(&args.method, &args.url, args.body.as_deref());
        match (result, args.retry) {
            (Ok(text), _) => {
                print!("{text}");
                return Ok(());
            }
            (Err(error), Some(limit)) if began.elapsed() < limit => {
                let _ = error;
                std::thread::sleep(Duration::from_millis(100));
            }
            (Err(error), _) => return Err(error),
        }
    }
}

/// The body of a 2xx answer; anything else is an error.
pub fn request(method: &str, url: &str, body: Option<&str>) -> anyhow::Result<String> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let request = ureq::http::Request::builder().method(method).uri(url);
    let body = body.unwrap_or_default().to_owned();
    let mut response = agent.run(request.body(body)?).with_context(|| format!("failed to reach {url}"))?;
    let mut text = String::new();
    response.body_mut().as_reader().read_to_string(&mut text)?;
    if !response.status().is_success() {
        bail!("{method} {url}: {}: {}", response.status(), text.trim());
    }
    Ok(text)
}

pub fn get(url: &str) -> anyhow::Result<String> {
    request("GET", url, None)
}
