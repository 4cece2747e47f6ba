//! Credential helpers: programs that keep logins, such as in the keyring of a desktop.
//!
//! Format: docker-credential-helpers (`get`: server on stdin, `{ServerURL, Username, Secret}` on stdout;
//! `store`: this JSON on stdin; `erase`: server on stdin). What a helper says is not shown: it may quote
//! a secret.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};

use super::credentials::{Credential, bad};
use super::error::Result;
use crate::oci::text::excerpt;

/// The user name that a helper returns with a token.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

#[derive(Serialize)]
struct Stored<'s> {
    #[serde(rename = "ServerURL")]
    server: &'s str,
    #[serde(rename = "Username")]
    username: &'s str,
    #[serde(rename = "Secret")]
    secret: &'s str,
}

/// Asks a helper for the login of a server.
pub(super) fn get(helper: &str, server: &str) -> Result<Option<Credential>> {
    let program = program(helper)?;
    let output = run(&program, "get", server.as_bytes())?;
    if !output.status.success() {
        if is_unknown(&output) {
            return Ok(None);
        }
        return Err(failed(&program, "get", server));
    }
    let helped: Helped = serde_json::from_slice(&output.stdout)
        .map_err(|_| bad(program.as_str(), "has not answered with JSON"))?;
    Ok(Some(match helped.username.as_str() {
        TOKEN => Credential::Identity(helped.secret),
        _ => Credential::Password {
            user: helped.username,
            password: helped.secret,
        },
    }))
}

/// Gives a helper the login of a server.
pub(super) fn store(helper: &str, server: &str, user: &str, password: &str) -> Result<()> {
    let program = program(helper)?;
    let stored = Stored {
        server,
        username: user,
        secret: password,
    };
    let text = serde_json::to_vec(&stored)
        .map_err(|_| bad(program.as_str(), "cannot be given this login"))?;
    if run(&program, "store", &text)?.status.success() {
        Ok(())
    } else {
        Err(failed(&program, "store", server))
    }
}

/// Makes a helper forget the login of a server. Returns whether it had one.
pub(super) fn erase(helper: &str, server: &str) -> Result<bool> {
    if get(helper, server)?.is_none() {
        return Ok(false);
    }
    let program = program(helper)?;
    let output = run(&program, "erase", server.as_bytes())?;
    if output.status.success() || is_unknown(&output) {
        Ok(true)
    } else {
        Err(failed(&program, "erase", server))
    }
}

fn program(helper: &str) -> Result<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if helper.bytes().all(plain) {
        Ok(format!("docker-credential-{helper}"))
    } else {
        Err(bad(
            excerpt(helper.as_bytes()),
            "is not a name of a credential helper",
        ))
    }
}

fn run(program: &str, action: &str, input: &[u8]) -> Result<Output> {
    let failed = |error: std::io::Error| {
        let why = format!("cannot be run ({error}): install it, or log in without a helper");
        bad(program, why)
    };
    let mut child = Command::new(program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input reports the reason by its exit code.
        let _ = stdin.write_all(input).and_then(|()| stdin.write_all(b"\n"));
    }
    child.wait_with_output().map_err(failed)
}

/// Whether a helper says that it does not have the login. Its protocol has this text and no code for it.
fn is_unknown(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stdout).contains("credentials not found")
}

fn failed(program: &str, action: &str, server: &str) -> super::error::Error {
    bad(
        program,
        format!("has failed for {server}: see `{program} {action}`"),
    )
}
