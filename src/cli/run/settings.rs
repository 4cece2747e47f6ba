//! The settings of a container: those of the image, and the options, which have precedence.

use anyhow::bail;
use serde_json::Value;

use super::look_up::Wanted;
use super::{ContainerArgs, Program, Terminal};
use crate::cli::error::Usage;

/// The search path if neither the image nor an option sets one, as engines have it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The settings.
#[derive(Debug)]
pub(super) struct Settings {
    /// The command and its arguments; at least one.
    pub(super) arguments: Vec<String>,
    /// The environment, each as `NAME=VALUE`.
    pub(super) environment: Vec<String>,
    /// The working directory: absolute.
    pub(super) directory: String,
    /// The user as it is written.
    pub(super) user: String,
}

impl Settings {
    pub(super) fn of(
        args: &ContainerArgs,
        program: &Program<'_>,
        config: &Value,
    ) -> anyhow::Result<Self> {
        let list = |key: &str| -> Vec<String> {
            let all = config.get(key).and_then(Value::as_array);
            let all = all.into_iter().flatten();
            all.filter_map(|text| text.as_str().map(str::to_owned))
                .collect()
        };
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
        let mut arguments = match args.entrypoint.as_deref() {
            None => list("Entrypoint"),
            Some("") => Vec::new(),
            Some(program) => vec![program.to_owned()],
        };
        let Program { image, command } = program;
        if !command.is_empty() {
            arguments.extend(command.iter().cloned());
        } else if args.entrypoint.is_none() {
            arguments.extend(list("Cmd"));
        }
        if arguments.first().is_none_or(String::is_empty) {
            bail!("the image {image:?} says no command: give one after its name");
        }
        let mut environment = list("Env");
        environment.retain(|line| {
            line.split_once('=')
                .is_some_and(|(name, _)| !name.is_empty())
        });
        for given in &args.env {
            let line = match given.split_once('=') {
                Some(("", _)) | None if given.is_empty() || given.starts_with('=') => {
                    return Err(Usage(format!("-e {given:?}: write NAME=VALUE")).into());
                }
                Some(_) => given.clone(),
                None => match std::env::var(given) {
                    Ok(value) => format!("{given}={value}"),
                    Err(_) => continue,
                },
            };
            set(&mut environment, &line);
        }
        let directory = args.workdir.as_deref().unwrap_or(text("WorkingDir"));
        let directory = if directory.is_empty() { "/" } else { directory };
        if !directory.starts_with('/') {
            bail!("the working directory {directory:?} is not absolute: give one with -w");
        }
        let settings = Self {
            arguments,
            environment,
            directory: directory.to_owned(),
            user: args.user.as_deref().unwrap_or(text("User")).to_owned(),
        };
        let all = (settings.arguments.iter()).chain(&settings.environment);
        if all
            .chain([&settings.directory, &settings.user])
            .any(|text| text.contains('\0'))
        {
            bail!("an argument or setting has a NUL, which no program can get");
        }
        Ok(settings)
    }

    /// Returns the directories in which a command is searched.
    pub(super) fn path(&self) -> &str {
        value(&self.environment, "PATH").unwrap_or(PATH)
    }

    /// Adds the variables that every container has, and one more.
    pub(super) fn complete(
        &mut self,
        wanted: &Wanted,
        hostname: &str,
        terminal: Terminal,
        more: Option<(&str, &str)>,
    ) {
        let defaults = [
            ("PATH", PATH),
            ("HOME", wanted.home.as_str()),
            ("HOSTNAME", hostname),
        ];
        let terminal = (terminal == Terminal::Given).then_some(("TERM", "xterm"));
        for (name, default) in defaults.into_iter().chain(terminal).chain(more) {
            if value(&self.environment, name).is_none() {
                self.environment.push(format!("{name}={default}"));
            }
        }
    }
}

fn value<'e>(environment: &'e [String], name: &str) -> Option<&'e str> {
    let mut lines = environment.iter().rev();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

/// Sets a variable, which replaces an earlier one.
fn set(environment: &mut Vec<String>, line: &str) {
    let name = line.split('=').next().unwrap_or_default();
    environment.retain(|old| old.split('=').next() != Some(name));
    environment.push(line.to_owned());
}
