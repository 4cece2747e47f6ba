//! A mounted union over given layers with a fresh upper, for tests that state their expectations
//! directly. On drop it checks that no lower was changed.

use std::path::{Path, PathBuf};

use super::exec::{self, Answer};
use super::layers::{self, Form, Layer};
use super::mount::{Fs, Mounted, Scratch, Stack, subject};
use super::script;
use super::tree::{self, Mask, Tree};

/// A union, mounted until dropped.
pub struct Fixture {
    // The fields are dropped in this order: first the mount, then its directories.
    mounted: Option<Mounted>,
    pub stack: Stack,
    pub scratch: Scratch,
    fs: Fs,
    /// The lowers at the start: contents, attributes, inode numbers.
    before: Vec<Tree>,
}

/// Lists the lowers, which nothing in a union may change. An empty path separates data-only lowers.
fn lowers(stack: &Stack) -> Vec<Tree> {
    let lowers = stack.lowers.iter().filter(|l| !l.as_os_str().is_empty());
    lowers.map(|l| tree::list_raw(l)).collect()
}

impl Fixture {
    /// Mounts unionfs over [`layers::standard`].
    pub fn standard() -> Self {
        Self::new(&layers::standard())
    }

    /// Mounts unionfs over `layers`, top first, with an empty upper.
    pub fn new(layers: &[Layer]) -> Self {
        Self::with(&subject(), layers, Form::Kernel, true)
    }

    /// Mounts unionfs over `layers` without an upper.
    pub fn read_only(layers: &[Layer]) -> Self {
        Self::with(&subject(), layers, Form::Kernel, false)
    }

    /// Mounts any implementation over `layers` written in `form`.
    pub fn with(fs: &Fs, layers: &[Layer], form: Form, writable: bool) -> Self {
        let scratch = Scratch::disk();
        let stack = Stack {
            lowers: layers::write_all(layers, scratch.path(), form),
            upper: writable.then(|| (scratch.dir("upper"), scratch.dir("work"))),
            mnt: scratch.dir("mnt"),
        };
        Self::over(fs, scratch, stack)
    }

    /// Mounts a prepared stack.
    pub fn over(fs: &Fs, scratch: Scratch, stack: Stack) -> Self {
        Self {
            before: lowers(&stack),
            mounted: Some(fs.mount(&stack)),
            stack,
            scratch,
            fs: fs.clone(),
        }
    }

    /// Returns the mountpoint.
    pub fn root(&self) -> &Path {
        &self.stack.mnt
    }

    /// Returns a path in the union.
    pub fn at(&self, path: impl AsRef<[u8]>) -> PathBuf {
        tree::at(self.root(), path.as_ref())
    }

    /// Returns a path in the upper directory.
    pub fn upper(&self, path: impl AsRef<[u8]>) -> PathBuf {
        tree::at(&self.stack.upper.as_ref().unwrap().0, path.as_ref())
    }

    /// Lists the union's tree.
    pub fn tree(&self) -> Tree {
        tree::list(self.root())
    }

    /// Runs a script on the union.
    pub fn run(&self, text: &str) -> Vec<Answer> {
        exec::run(self.root(), &script::parse(text))
    }

    /// Runs a script in which every operation must succeed. Returns the answers.
    pub fn ok(&self, text: &str) -> Vec<String> {
        let ops = script::parse(text);
        let answers = exec::run(self.root(), &ops);
        let check = |(op, answer): (_, Answer)| match answer {
            Ok(value) => value,
            Err(e) => panic!("{op}: {e}"),
        };
        ops.iter().zip(answers).map(check).collect()
    }

    /// Runs a table of operations, each with its expected answer: the text of the value, or the
    /// name of the errno.
    pub fn expect(&self, table: &[(&str, &str)]) {
        let text: Vec<_> = table.iter().map(|(op, _)| *op).collect();
        let answers = self.run(&text.join("\n"));
        assert_eq!(answers.len(), table.len(), "one operation a row");
        for ((op, expected), answer) in table.iter().zip(answers) {
            let got = answer.unwrap_or_else(|e| e);
            assert_eq!(got, *expected, "answer of: {op}");
        }
    }

    /// Returns the mount itself.
    pub fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().unwrap()
    }

    /// Ends the check of the lowers, for a test that changes a lower itself.
    pub fn lowers_are_changed_by_the_test(&mut self) {
        self.before.clear();
    }

    /// Unmounts and waits for the end of the server.
    pub fn unmount(&mut self) {
        self.mounted.take().unwrap().unmount();
    }

    /// Unmounts if mounted, and mounts again.
    pub fn remount(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        self.mounted = Some(self.fs.mount(&self.stack));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.mounted.take());
        if std::thread::panicking() {
            return;
        }
        let mask = Mask {
            ino: true,
            ..Mask::ALL
        };
        for (n, (before, now)) in self.before.iter().zip(lowers(&self.stack)).enumerate() {
            tree::assert_same(&format!("lower {n} was changed"), before, &now, &mask);
        }
    }
}
