//! Dockerfile instructions that change the settings for containers: `commit --change` and the like.
//!
//! They are those of `docker commit` (moby, builder/dockerfile; Dockerfile reference): CMD,
//! ENTRYPOINT, ENV, LABEL, EXPOSE, HEALTHCHECK, VOLUME, USER, WORKDIR, STOPSIGNAL, ONBUILD; and SHELL,
//! the shell for later CMD and ENTRYPOINT. `$NAME` and `${NAME}` are replaced by the variables of the
//! image, except in CMD, ENTRYPOINT, HEALTHCHECK, SHELL and ONBUILD.

use serde_json::{Map, Value, json};

use super::{Error, Result, healthcheck};

/// The `config` object of the configuration of an image.
pub(crate) type RunConfig = Map<String, Value>;

/// Applies instructions in order.
///
/// # Errors
/// [`Error::BadInstruction`] for an instruction that Docker refuses too.
pub(crate) fn apply(config: &mut RunConfig, instructions: &[String]) -> Result<()> {
    let mut cmd_set = false;
    for text in instructions {
        let fail = |reason| Error::BadInstruction {
            text: text.chars().take(200).collect(),
            reason,
        };
        let (keyword, rest) = match text.trim().split_once(char::is_whitespace) {
            Some((keyword, rest)) => (keyword.to_ascii_uppercase(), rest.trim()),
            None => return Err(fail("it has no argument")),
        };
        if keyword == "ENTRYPOINT" && !cmd_set {
            // A new entry point must not get the arguments of another one.
            config.remove("Cmd");
        }
        cmd_set |= keyword == "CMD";
        one(config, &keyword, rest).map_err(fail)?;
    }
    Ok(())
}

fn one(config: &mut RunConfig, keyword: &str, rest: &str) -> Outcome<()> {
    match keyword {
        "CMD" => set(config, "Cmd", command(config, rest)?),
        "ENTRYPOINT" => set(config, "Entrypoint", command(config, rest)?),
        "HEALTHCHECK" => set(config, "Healthcheck", healthcheck::parse(rest)?),
        "SHELL" => match list(rest) {
            Some(words) if !words.is_empty() => set(config, "Shell", json!(words)),
            _ => return Err("write SHELL [\"PROGRAM\", \"ARGUMENT\"]"),
        },
        "ENV" => {
            for (name, value) in pairs(config, rest)? {
                set_variable(config, &name, &value);
            }
        }
        "LABEL" => {
            for (name, value) in pairs(config, rest)? {
                object(config, "Labels").insert(name, Value::String(value));
            }
        }
        "EXPOSE" => {
            for port in words(config, rest)? {
                object(config, "ExposedPorts").insert(self::port(&port)?, json!({}));
            }
        }
        "VOLUME" => {
            let listed = list(rest);
            let volumes = match listed {
                Some(volumes) => volumes,
                None => words(config, rest)?,
            };
            for volume in volumes {
                if volume.is_empty() {
                    return Err("a volume has a path");
                }
                object(config, "Volumes").insert(volume, json!({}));
            }
        }
        "USER" => {
            let user = single(config, rest)?;
            set(config, "User", Value::String(user));
        }
        "WORKDIR" => {
            let dir = single(config, rest)?;
            let current = config.get("WorkingDir").and_then(Value::as_str);
            let dir = joined(current.unwrap_or_default(), &dir);
            set(config, "WorkingDir", Value::String(dir));
        }
        "STOPSIGNAL" => {
            let signal = single(config, rest)?;
            set(config, "StopSignal", Value::String(signal));
        }
        "ONBUILD" => array(config, "OnBuild").push(Value::String(rest.to_owned())),
        _ => {
            return Err(
                "only CMD, ENTRYPOINT, ENV, LABEL, EXPOSE, HEALTHCHECK, VOLUME, USER, WORKDIR, \
                 STOPSIGNAL, SHELL and ONBUILD change an image's configuration",
            );
        }
    }
    Ok(())
}

/// Applies one instruction. The error is the reason.
type Outcome<T> = std::result::Result<T, &'static str>;

fn set(config: &mut RunConfig, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

fn object<'c>(config: &'c mut RunConfig, key: &str) -> &'c mut Map<String, Value> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("made one above"),
    }
}

fn array<'c>(config: &'c mut RunConfig, key: &str) -> &'c mut Vec<Value> {
    let value = config.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(array) => array,
        _ => unreachable!("made one above"),
    }
}

/// Parses `["a", "b"]`; `None` for anything else.
fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// Returns the exec form as it is, and the shell form as an argument of the shell of the image.
fn command(config: &RunConfig, text: &str) -> Outcome<Value> {
    match list(text) {
        Some(words) => Ok(json!(words)),
        None if text.is_empty() => Err("it has no argument"),
        None => {
            let shell = config.get("Shell").and_then(Value::as_array);
            let mut words = match shell {
                Some(shell) if !shell.is_empty() => shell.clone(),
                _ => vec![json!("/bin/sh"), json!("-c")],
            };
            words.push(json!(text));
            Ok(Value::Array(words))
        }
    }
}

fn variable<'c>(config: &'c RunConfig, name: &str) -> Option<&'c str> {
    let all = config.get("Env").and_then(Value::as_array)?;
    let mut all = all.iter().rev().filter_map(Value::as_str);
    all.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn set_variable(config: &mut RunConfig, name: &str, value: &str) {
    let entry = Value::String(format!("{name}={value}"));
    let is_it = |old: &Value| {
        let old = old.as_str().and_then(|old| old.strip_prefix(name));
        old.is_some_and(|rest| rest.starts_with('='))
    };
    let all = array(config, "Env");
    match all.iter().position(is_it) {
        Some(at) => all[at] = entry,
        None => all.push(entry),
    }
}

/// Parses `NAME=VALUE …`, or the old form `NAME VALUE` as one pair.
fn pairs(config: &RunConfig, text: &str) -> Outcome<Vec<(String, String)>> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    let found = if first.contains('=') {
        let pair = |word: String| {
            let (name, value) = word.split_once('=').ok_or("write NAME=VALUE")?;
            Ok((name.to_owned(), value.to_owned()))
        };
        let words = words(config, text)?.into_iter();
        words.map(pair).collect::<Outcome<Vec<_>>>()?
    } else {
        let (name, value) = text
            .split_once(char::is_whitespace)
            .ok_or("write NAME=VALUE")?;
        vec![(name.to_owned(), one_word(config, value.trim_start())?)]
    };
    if found.iter().any(|(name, _)| name.is_empty()) {
        Err("the name is empty")
    } else {
        Ok(found)
    }
}

fn single(config: &RunConfig, text: &str) -> Outcome<String> {
    one_word(config, text)
}

/// Removes quotes and expands variables. Blanks stay.
fn one_word(config: &RunConfig, text: &str) -> Outcome<String> {
    let words = split(config, text, Blanks::Kept)?;
    words.into_iter().next().ok_or("it has no argument")
}

fn words(config: &RunConfig, text: &str) -> Outcome<Vec<String>> {
    split(config, text, Blanks::Separate)
}

/// The meaning of blanks that are not quoted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blanks {
    /// A word ends.
    Separate,
    /// They are part of the word.
    Kept,
}

/// Splits a text into words without their quotes, and expands variables.
fn split(config: &RunConfig, text: &str, blanks: Blanks) -> Outcome<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if blanks == Blanks::Separate && c.is_whitespace() => {
                words.extend(word.take());
            }
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(q), c) if q == c => quote = None,
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or("a backslash at its end")?;
                let word = word.get_or_insert_default();
                // Within quotes a backslash quotes only special characters.
                if quote.is_some() && !matches!(next, '"' | '\\' | '$') {
                    word.push('\\');
                }
                word.push(next);
            }
            (None | Some('"'), '$') => {
                let value = expand(config, &mut chars)?;
                word.get_or_insert_default().push_str(&value);
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

/// Expands the variable after a `$`.
fn expand(
    config: &RunConfig,
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
) -> Outcome<String> {
    let braces = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if braces && chars.next_if_eq(&'}').is_none() {
        return Err("of variables only $NAME and ${NAME} are understood");
    }
    if name.is_empty() {
        return if braces {
            Err("${} names no variable")
        } else {
            Ok("$".to_owned())
        };
    }
    Ok(variable(config, &name).unwrap_or_default().to_owned())
}

/// Completes a port: `80` becomes `80/tcp`.
fn port(text: &str) -> Outcome<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let good = number.parse::<u16>().is_ok_and(|n| n > 0);
    if good && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        Ok(format!("{number}/{protocol}"))
    } else {
        Err("a port is a number from 1 to 65535, with /tcp, /udp or /sctp")
    }
}

/// Resolves a path relative to the working directory, with `.` and `..`.
fn joined(current: &str, dir: &str) -> String {
    let whole = if dir.starts_with('/') {
        dir.to_owned()
    } else {
        format!("{current}/{dir}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(instructions: &[&str]) -> Result<Value> {
        let mut config = match json!({
            "Cmd": ["old"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv"
        }) {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        let instructions: Vec<String> = instructions.iter().map(|i| (*i).to_owned()).collect();
        apply(&mut config, &instructions).map(|()| Value::Object(config))
    }

    #[test]
    fn instructions_do_what_they_do_for_docker() {
        let found = changed(&[
            r#"CMD ["/bin/app", "-v"]"#,
            r#"ENV PATH=$PATH:/opt B="two words" C='$A' D=${A}x"#,
            "ENV OLD form of it",
            "label a=b c=\"d e\"",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data", "/x y"]"#,
            "USER 1:2",
            "WORKDIR a/../b",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(
            found.unwrap(),
            json!({
                "Cmd": ["/bin/app", "-v"],
                "Env": ["PATH=/bin:/opt", "A=1", "B=two words", "C=$A", "D=1x", "OLD=form of it"],
                "Labels": {"a": "b", "c": "d e"},
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Volumes": {"/data": {}, "/x y": {}},
                "User": "1:2",
                "WorkingDir": "/srv/b",
                "StopSignal": "SIGINT",
            })
        );
    }

    #[test]
    fn an_entry_point_takes_the_old_command_away() {
        let found = changed(&["ENTRYPOINT run me"]).unwrap();
        assert_eq!(found["Entrypoint"], json!(["/bin/sh", "-c", "run me"]));
        assert_eq!(found.get("Cmd"), None);
        let found = changed(&["CMD new", "ENTRYPOINT [\"e\"]"]).unwrap();
        assert_eq!(found["Cmd"], json!(["/bin/sh", "-c", "new"]));
    }

    #[test]
    fn the_shell_is_that_of_the_image() {
        let found = changed(&["SHELL [\"/bin/bash\", \"-lc\"]", "CMD run $me"]).unwrap();
        assert_eq!(found["Shell"], json!(["/bin/bash", "-lc"]));
        assert_eq!(found["Cmd"], json!(["/bin/bash", "-lc", "run $me"]));
        let found = changed(&["healthcheck --retries=2 CMD $me"]).unwrap();
        let check = json!({"Retries": 2, "Test": ["CMD-SHELL", "$me"]});
        assert_eq!(found["Healthcheck"], check);
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        for bad in [
            "",
            "CMD",
            "RUN x",
            "FROM y",
            "ENV A",
            "ENV =x",
            "ENV A=\"x",
            "ENV A=${B:-c}",
            "EXPOSE http",
            "EXPOSE 0",
            "SHELL /bin/sh",
            "SHELL []",
            "HEALTHCHECK",
            "EXPOSE 80/icmp",
            "LABEL x",
            "ENV A=b\\",
        ] {
            let error = changed(&[bad]);
            assert!(
                matches!(error, Err(Error::BadInstruction { .. })),
                "{bad}: {error:?}"
            );
        }
    }
}
