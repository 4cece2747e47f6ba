//! `unionfs completions` prints the script with which a shell completes command lines. The script
//! calls this program for the words, with the command line and `$UNIONFS_COMPLETE`.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::CompleteEnv;
use clap_complete::engine::{self, ArgValueCompleter};
use clap_complete::env::{EnvCompleter, Fish, Shells, Zsh};

use super::{aliases, candidates};

/// Print the script with which a shell completes command lines
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs completions bash > /etc/bash_completion.d/unionfs
  unionfs completions zsh > /usr/local/share/zsh/site-functions/_unionfs
  unionfs completions fish > ~/.config/fish/completions/unionfs.fish

The script completes commands, options, names of images, containers and read-write layers, and
mountpoints. For names it runs unionfs, which reads the stores in a sandbox and gives up after 1.5
seconds. Names with characters that a shell expands are not completed.")]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The variable that the scripts set.
const VARIABLE: &str = "UNIONFS_COMPLETE";
const PROGRAM: &str = "unionfs";

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &PlainBash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    super::output::print_bytes(&script)
}

/// Completes a command line if a script has called this program for that. Returns whether it has.
pub(super) fn complete() -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let shells: [&dyn EnvCompleter; 3] = [&PlainBash, &Zsh, &Fish];
    let done = CompleteEnv::with_factory(|| aliases::with_groups(super::Cli::command()))
        .var(VARIABLE)
        .bin(PROGRAM)
        .completer(PROGRAM)
        .shells(Shells(&shells))
        .try_complete(std::env::args_os(), None);
    // A message would stand in the middle of the line that is typed.
    done.unwrap_or(true)
}

/// bash, which inserts words as they are, and splits words at colons, which names of images have.
struct PlainBash;

const BASH_SCRIPT: &str = r#"_unionfs_complete() {
    local IFS=$'\013' i word last cut words=()
    # bash splits at colons and equals signs.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        # What stands behind the cursor does not count.
        if ((i == COMP_CWORD)) && [[ $word != : && $word != = ]]; then word=$2; fi
        if ((${#words[@]} > 1)) && [[ $word == [=:]* || ${words[${#words[@]} - 1]} == *[=:] ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
    done
    last=${words[${#words[@]} - 1]}
    cut=${last%"${last##*[=:]}"}
    local found
    found=$(VARIABLE=bash _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) PROGRAM -- "${words[@]}" 2>/dev/null) || return
    COMPREPLY=()
    # Words have no characters that bash expands.
    for word in $found; do
        COMPREPLY+=("${word#"$cut"}")
    done
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/:] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o bashdefault -o default -F _unionfs_complete PROGRAM
"#;

/// Leaves the completion of file names to bash, which quotes them and the engine does not.
fn without_paths(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let has_words = arg.get::<ArgValueCompleter>().is_some()
            || !arg.get_possible_values().is_empty()
            || !arg.get_action().takes_values();
        if has_words {
            arg
        } else {
            arg.add(ArgValueCompleter::new(|_: &OsStr| Vec::new()))
        }
    });
    command.mut_subcommands(without_paths)
}

impl EnvCompleter for PlainBash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == "bash"
    }

    fn write_registration(
        &self,
        var: &str,
        _: &str,
        bin: &str,
        _: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let script = BASH_SCRIPT.replace("VARIABLE", var).replace("PROGRAM", bin);
        buf.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        cmd: &mut clap::Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let index = std::env::var("_CLAP_COMPLETE_INDEX");
        let index = index.ok().and_then(|index| index.parse().ok());
        let index = index
            .filter(|index| *index < args.len())
            .unwrap_or(args.len() - 1);
        *cmd = without_paths(cmd.clone());
        candidates::leave_paths_to_the_shell();
        let all = engine::complete(cmd, args, index, current_dir)?;
        let words = all.iter().filter_map(|word| word.get_value().to_str());
        let words: Vec<&str> = words.filter(|word| candidates::is_plain(word)).collect();
        buf.write_all(words.join("\u{b}").as_bytes())
    }
}
