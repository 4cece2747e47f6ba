//! The page "Which options for which work" of the guide: for kinds of work the options, the rows of
//! the benchmark that stand for them, and their figures.

use std::fmt::Write as _;

use super::report::{Column, KERNEL, Mean, Report, mean};

/// A kind of work.
struct Kind {
    title: &'static str,
    /// The options that we recommend, and why. Text of Markdown.
    choose: &'static str,
    /// What the options cost or risk, and what else to know.
    know: &'static str,
    /// The rows that stand for it.
    rows: &'static [&'static str],
}

const KINDS: [Kind; 9] = [
    Kind {
        title: "Builds and compilers",
        choose: "The defaults, or `io=cached`: compilers open the same headers and libraries again and again, and \
            with `io=cached` such an open sends no message. `transport=uring`, where root has switched it on, makes \
            the rest of the messages cheaper.",
        know: "Add `volatile` if the result can be built again after a crash.",
        rows: &[
            "chroot: gcc of 60 files",
            "chroot: python compileall",
            "chroot: 5 starts of node",
            "chroot: npm ci",
            "git clone, status",
            "git init, add, commit",
        ],
    },
    Kind {
        title: "Unpacking and installing: many small files are made",
        choose: "`io=cached`: each file that is made costs one message less. `noxattrs,nobtime` if nothing below the \
            mount needs extended attributes (file capabilities, ACLs) or times of birth: the kernel then asks no \
            more for `security.capability` before it writes. `transport=uring` where root has switched it on.",
        know: "`noxattrs` hides file capabilities too, so programs such as `ping` lose them. `volatile` saves the \
            syncs of copy-up.",
        rows: &[
            "untar of a source tree",
            "cp -a of a tree",
            "rm -rf of a lower tree",
            "3000 create+write+close",
            "3000 rename",
            "3000 unlink",
            "2000 mkdir+rmdir",
            "1000 chmod of lower files",
            "chroot: apt-get install of a package",
            "chroot: pip install of a wheel",
        ],
    },
    Kind {
        title: "Owners and modes of many files of an image change",
        choose: "`metacopy=on`, if only unionfs and kernel overlayfs with `metacopy=on` read the upper: the change of \
            a lower file copies no data.",
        know: "Docker, podman and fuse-overlayfs show errors or files of zeros in such an upper \
            ([Markers](options-markers.md)). An ID mapping (`uidmapping=`, [ID mappings](options-mappings.md)) \
            changes no file at all.",
        rows: &["chown of 5000 lower files", "1000 chmod of lower files"],
    },
    Kind {
        title: "Databases",
        choose: "`io=passthrough`, which root gets by default on writable mounts: the kernel writes to the file \
            system of the upper without a message. A volume outside of the mount is still better for data that \
            lives longer than the container.",
        know: "`writeback` is no choice for databases without root: data that was not synced is lost with the \
            daemon, and each fsync(2) takes longer. With `volatile` fsync(2) returns at once and a crash of the \
            machine loses data: only for tests.",
        rows: &[
            "sqlite: 300 transactions",
            "fio randwrite-4k-upper",
            "fio randwrite-4k-fsync-upper",
            "fio mmap-randwrite-4k-upper",
            "fio randwrite-4k-direct-upper",
        ],
    },
    Kind {
        title: "Large sequential writes",
        choose: "`io=passthrough`, which root gets by default on writable mounts. Without root: `io=cached`, with \
            `writeback` if the program writes in pieces of less than 64 KiB.",
        know: "With `writeback` data that the kernel has not sent yet is lost if the daemon is killed.",
        rows: &[
            "fio seqwrite-128k-new",
            "fio seqwrite-4k-new",
            "20000 writes of 100 bytes",
            "20000 appends of 100 bytes",
        ],
    },
    Kind {
        title: "Many small files are opened and read again and again",
        choose: "`io=cached`: an open of a file that was opened before sends no message. With `io=passthrough` each \
            open and each close is one. Read-only mounts are `cached` by default.",
        know: "Web servers, interpreters and scanners of sources belong here.",
        rows: &[
            "warm open+read+close of a tree",
            "20000 open+close of one file",
            "chroot: 20 starts of python",
        ],
    },
    Kind {
        title: "Scanners and walks",
        choose: "An image instead of plain directories, if there is one: its catalog answers a walk without a system \
            call on the layers, and the more layers, the more that saves. `nobtime` if the scanner asks for times of \
            birth (programs in Rust and Node.js do) and does not need them.",
        know: "`unionfs catalog build` makes the catalog before the first mount, also for plain directories that do \
            not change ([Catalogs](../CATALOG.md)).",
        rows: &[
            "cold walk after mount",
            "cold walk after drop_caches",
            "cold walk that asks for births",
            "warm walk with stat",
            "listing of 20000 names, cold",
            "reading a tree cold",
        ],
    },
    Kind {
        title: "Many mounts of one image",
        choose: "`io=shared`: all mounts share the pages of the layers. By default each mount has a copy of the \
            pages that it reads.",
        know: "The first row is memory, not time. `io=shared` costs a message for each open and each close. Who has a \
            file of a layer open when it is written for the first time keeps the old data.",
        rows: &[
            "page cache of ten mounts reading a file",
            "reading a tree cold",
            "fio randread-4k-lower",
        ],
    },
    Kind {
        title: "Containers on busy hosts",
        choose: "The defaults. `transport=uring`, where root has switched it on, spares processor time for each \
            message, and answers processes that work in parallel faster.",
        know: "The first row is processor time of client and daemon. A message needs a wake-up, so fewer messages \
            matter more than faster ones: see the kinds above.",
        rows: &[
            "CPU time of 3000 create+write+close",
            "4 processes: create, stat, unlink",
            "8 processes: create, stat, unlink",
            "32 processes: create, stat, unlink",
        ],
    },
];

/// The distance between two means that is within the noise.
const NOISE: f64 = 1.05;

/// Returns the page.
pub(crate) fn page(report: &Report) -> String {
    let mut page = format!(
        "# Which options for which work\n\n\
         `just bench --publish` makes this page of the last published run ([Benchmarks](../BENCHMARKS.md)): {} rounds \
         on {}, Linux {}, {}, {} CPUs, {}, unionfs {}. The figures are times as ratios to kernel overlayfs in the same \
         run, as geometric means over the rows of the kind; smaller is faster. Bold figures are within 5 % of the best \
         column of unionfs. Differences of less than 10 % are within the noise of such a machine.\n\n\
         Plain users get `io=cached` by default, because the kernel passes files through for root only. \
         `transport=uring` needs a switch that only root can set ([Performance](performance.md)). The columns:\n\n",
        report.rounds,
        report.fact("date"),
        report.fact("kernel"),
        report.fact("CPU"),
        report.fact("CPUs"),
        report.fact("disk"),
        report.fact("unionfs"),
    );
    let columns: Vec<&Column> = report
        .columns
        .iter()
        .filter(|c| c.name != KERNEL && c.name != "no union")
        .collect();
    let used: Vec<&Column> = columns
        .into_iter()
        .filter(|c| KINDS.iter().any(|kind| of(report, kind, &c.name).is_some()))
        .collect();
    for Column { name, mounted } in &used {
        let _ = writeln!(page, "- {name}: {mounted}");
    }
    page.push('\n');
    head(&mut page, "kind of work", &used);
    for kind in &KINDS {
        let ratios = used
            .iter()
            .map(|c| of(report, kind, &c.name).map(|m| m.ratio));
        let _ = writeln!(page, "| {} |{}", link(kind), cells(&used, ratios.collect()));
    }
    for kind in &KINDS {
        section(&mut page, report, kind, &used);
    }
    page
}

/// Returns the mean of a column over the rows of a kind; `None` unless it has all of them that
/// kernel overlayfs has.
fn of(report: &Report, kind: &Kind, column: &str) -> Option<Mean> {
    let rows = kind.rows.iter().filter_map(|name| report.row(name));
    let ratios = |column| mean(rows.clone().filter_map(|row| row.ratio(column)));
    let (all, has) = (ratios(KERNEL)?, ratios(column)?);
    (has.rows == all.rows).then_some(has)
}

/// Returns a link to the section of a kind, as mdBook and GitHub name it.
fn link(kind: &Kind) -> String {
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-'].contains(c);
    let anchor: String = kind.title.to_lowercase().chars().filter(kept).collect();
    format!("[{}](#{})", kind.title, anchor.replace(' ', "-"))
}

fn head(page: &mut String, first: &str, columns: &[&Column]) {
    let _ = write!(page, "| {first} |");
    for column in columns {
        let _ = write!(page, " {} |", column.name);
    }
    let _ = writeln!(page, "\n| --- |{}", " ---: |".repeat(columns.len()));
}

/// Returns the cells of a line, with the best columns of unionfs in bold.
fn cells(columns: &[&Column], ratios: Vec<Option<f64>>) -> String {
    let ours = columns.iter().zip(&ratios).filter(|(c, _)| c.is_ours());
    let best = ours
        .filter_map(|(_, ratio)| *ratio)
        .fold(f64::INFINITY, f64::min);
    let cell = |(column, ratio): (&&Column, &Option<f64>)| match ratio {
        None => " – |".to_owned(),
        Some(ratio) if column.is_ours() && *ratio <= best * NOISE => format!(" **{ratio:.2}** |"),
        Some(ratio) => format!(" {ratio:.2} |"),
    };
    columns.iter().zip(&ratios).map(cell).collect()
}

fn section(page: &mut String, report: &Report, kind: &Kind, columns: &[&Column]) {
    let _ = write!(
        page,
        "\n## {}\n\n{}\n\n{}\n\n",
        kind.title, kind.choose, kind.know
    );
    let rows: Vec<_> = kind
        .rows
        .iter()
        .filter_map(|name| report.row(name))
        .collect();
    if rows.is_empty() {
        page.push_str("The last published run has no figures for it.\n");
        return;
    }
    let used = columns.iter().copied();
    let used: Vec<_> = used
        .filter(|c| rows.iter().any(|r| r.ratio(&c.name).is_some()))
        .collect();
    head(page, "row", &used);
    for row in rows {
        let ratios = used.iter().map(|c| row.ratio(&c.name)).collect();
        let _ = writeln!(page, "| {} |{}", row.name, cells(&used, ratios));
    }
}
