//! `unionfs login` checks a login at a registry and stores it.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use super::command_sandbox::SandboxArgs;
use super::confined_queries::ask;
use super::error::Usage;
use super::output::print;
use super::registry_args::{Connection, ask_for_password};
use super::warn;
use unionfs::registry::{LoginPlace, LoginTarget, Purpose, check_login};

/// The size limit of a password, in bytes.
const LONGEST: u64 = 64 << 10;

/// Log in to a registry
///
/// The login is checked at the registry and stored in the file that docker, podman and skopeo read:
/// $REGISTRY_AUTH_FILE, else $DOCKER_CONFIG/config.json or ~/.docker/config.json. If that file names a
/// credential helper, the helper gets it. Logins of docker and podman need not be repeated.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs login quay.io
  echo \"$TOKEN\" | unionfs login -u robot --password-stdin registry.example.org
  unionfs login --get-login quay.io")]
pub(super) struct Args {
    /// The registry: HOST[:PORT][/NAMESPACE]
    #[arg(default_value = "docker.io")]
    registry: String,
    /// The user [default: asked for]
    #[arg(long, short = 'u', value_name = "USER")]
    username: Option<String>,
    /// The password; other users of this machine may see it: prefer --password-stdin
    #[arg(
        long,
        short = 'p',
        value_name = "PASSWORD",
        conflicts_with = "password_stdin"
    )]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Print the user who is logged in, and do nothing else
    #[arg(long, conflicts_with_all = ["username", "password", "password_stdin"])]
    get_login: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let target = LoginTarget::parse(&args.registry).map_err(|e| Usage(e.to_string()))?;
    let mut access = args.connection.access();
    if args.get_login {
        return match access.logged_in(&target)? {
            Some(user) => print(&format!("{user}\n")),
            None => anyhow::bail!("not logged in to {}: unionfs login {0}", target.key()),
        };
    }
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask_for_user()?,
    };
    let password = match (&args.password, args.password_stdin) {
        (Some(password), _) => {
            warn(
                "other users of this machine may see a password on a command line: use --password-stdin",
            );
            password.clone()
        }
        (None, true) => from_stdin()?,
        (None, false) => ask_for_password(&user)?,
    };
    if password.is_empty() {
        return Err(Usage("the password is empty".to_owned()).into());
    }
    access.credentials.give(user.clone(), password.clone());
    access.look_up(target.name(), Purpose::Push)?;
    let mut cage = args.sandbox.cage("login")?;
    cage.talk()?;
    // This process reads nothing that the registry sends.
    ask(cage.into_queries(), 64 << 10, || {
        check_login(&target, &access, &|_| ())?;
        Ok(Vec::new())
    })?;
    let place = match access.store_login(&target, &user, &password)? {
        LoginPlace::File(path) => path.display().to_string(),
        LoginPlace::Helper(name) => format!("docker-credential-{name}"),
        _ => "its place".to_owned(),
    };
    print(&format!(
        "Login succeeded: {} as {user}, in {place}\n",
        target.key()
    ))
}

fn ask_for_user() -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        let text =
            "there is no terminal to ask for the user on: give --username and --password-stdin";
        return Err(Usage(text.to_owned()).into());
    }
    let _ = write!(io::stderr(), "User: ");
    let _ = io::stderr().flush();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    match line.trim() {
        "" => Err(Usage("the user is empty".to_owned()).into()),
        user => Ok(user.to_owned()),
    }
}

/// Reads the password, without the line end.
fn from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().lock().take(LONGEST).read_to_string(&mut text)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
