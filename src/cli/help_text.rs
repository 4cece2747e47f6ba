//! The texts behind the options in `--help`: their paragraphs are broken for the terminal, not where the
//! source breaks its lines.

use clap::Command;

/// Joins the lines of the paragraphs behind the options, of a command and of those below it, so that the
/// parser breaks them for the width of the terminal.
pub(super) fn flowing(command: Command) -> Command {
    let text = command
        .get_after_help()
        .map(|text| joined(&text.to_string()));
    let command = match text {
        Some(text) => command.after_help(text),
        None => command,
    };
    command.mut_subcommands(flowing)
}

/// Joins lines, except those that are indented, empty lines, and the beginning of a list.
fn joined(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    let mut before = "";
    for line in text.lines() {
        let is_alone = |line: &str| line.is_empty() || line.starts_with(' ');
        let continues =
            !is_alone(before) && !is_alone(line) && !before.ends_with(':') && !is_heading(line);
        if !all.is_empty() {
            all.push(if continues { ' ' } else { '\n' });
        }
        all.push_str(line);
        before = line;
    }
    all
}

/// Whether a line begins with one or two words and a colon, such as `Exit codes:`.
fn is_heading(line: &str) -> bool {
    let starts_upper = line.starts_with(|c: char| c.is_uppercase());
    let mut words = line.split(' ').take(2);
    starts_upper && words.any(|word| word.ends_with(':'))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn paragraphs_are_joined_and_lists_stay() {
        let text = "Examples:\n  a b\n  c\n\nOne line\nand another,\nand more.\nExit codes: 0 good,\n1 bad.\nThat is\n  so";
        let expected = "Examples:\n  a b\n  c\n\nOne line and another, and more.\nExit codes: 0 good, 1 bad. That is\n  so";
        assert_eq!(joined(text), expected);
    }

    /// No line of a paragraph is broken before its width is used.
    #[test]
    fn help_uses_the_width() {
        for width in [80, 100] {
            let mut command = flowing(super::super::Cli::command()).term_width(width);
            command.build();
            for sub in command.get_subcommands_mut() {
                let help = sub.render_long_help().to_string();
                let (_, end) = help.split_once("\nExamples:\n").unwrap_or(("", ""));
                let lines: Vec<&str> = end.lines().collect();
                for pair in lines.windows(2) {
                    let [line, next] = [pair[0], pair[1]];
                    let prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
                    let word = next.split(' ').next().unwrap_or_default();
                    let fits = line.chars().count() + 1 + word.chars().count() <= width;
                    let broken = prose(line) && prose(next) && fits && !is_heading(next);
                    let name = sub.get_name().to_owned();
                    assert!(
                        !broken || line.ends_with(':'),
                        "{width} {name}: {line} / {next}"
                    );
                }
            }
        }
    }
}
