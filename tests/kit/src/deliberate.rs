//! Answers in which unionfs and kernel overlayfs differ on purpose. docs/SEMANTICS.md gives the
//! reasons and names the tests.

use super::descriptor::HOp;
use super::exec::Answer;
use super::script::Op;

/// Whether the answers to an operation may differ.
pub fn deliberate(op: &Op, kernel: &Answer, union: &Answer) -> bool {
    match op {
        // The kernel's overlayfs returns EINVAL for directories. Its FUSE client answers otherwise
        // without asking the server. The kernel's copy-up fills holes, that of unionfs keeps them.
        Op::SeekData(..) | Op::SeekHole(..) | Op::Held(_, HOp::SeekData(_) | HOp::SeekHole(_)) => {
            let end = u64::MAX;
            let offset = |a: &Answer| a.as_ref().map_or(end, |n| n.parse().unwrap_or(end));
            let (kernel_at, union_at) = (offset(kernel), offset(union));
            *kernel == Err("EINVAL".into())
                || match op {
                    Op::SeekData(..) | Op::Held(_, HOp::SeekData(_)) => union_at > kernel_at,
                    _ => union_at < kernel_at,
                }
        }
        // A lower file that was unlinked while open has no name left.
        Op::Held(_, HOp::Stat) => match (kernel, union) {
            (Ok(k), Ok(u)) => k.replace(" nlink 1 ", " nlink 0 ") == *u,
            _ => false,
        },
        // The kernel maps the lower file through a descriptor that was opened before the copy-up.
        Op::Held(_, HOp::MapRead(..)) => {
            *kernel == Ok("not as read".into()) && *union == Ok("as read".into())
        }
        Op::In(_, op) => deliberate(op, kernel, union),
        _ => false,
    }
}

/// Whether the kernel lost a file by copying it up to its former name. If a program changes an
/// unlinked lower file through a descriptor, the kernel copies the file up to the name it had, and
/// fails if the name is taken (EEXIST for files, ENOTDIR for directories, over a whiteout). The
/// following answers cannot be compared (docs/SEMANTICS.md, "Open files").
fn copies_up_to_a_name_that_is_gone(op: &Op, kernel: &Answer, union: &Answer) -> bool {
    let refused = [Err("EEXIST".into()), Err("ENOTDIR".into())];
    // If a new directory has the name of the removed one, the new one is lost.
    let overwritten = kernel.is_ok() && *union == Err("ENOENT".into());
    changes_by_descriptor(op) && union != kernel && (refused.contains(kernel) || overwritten)
}

/// Whether an operation changes attributes through a descriptor.
pub fn changes_by_descriptor(op: &Op) -> bool {
    matches!(
        op,
        Op::Held(
            _,
            HOp::Chmod(_)
                | HOp::Chown(..)
                | HOp::Utimens(..)
                | HOp::Touch
                | HOp::Setxattr(..)
                | HOp::Removexattr(_)
                | HOp::Reopen(..)
        )
    )
}

/// Whether the kernel refuses a link to a lower file through a descriptor, because its metacopy
/// would need a longer redirect than it writes (docs/SEMANTICS.md, "Renaming directories").
fn needs_a_longer_redirect(op: &Op, kernel: &Answer, union: &Answer) -> bool {
    let links = matches!(op, Op::Held(_, HOp::Link(_) | HOp::LinkEmpty(_)));
    links && *kernel == Err("EXDEV".into()) && union.is_ok()
}

/// Whether the following operations cannot be compared any more.
pub fn ends(op: &Op, kernel: &Answer, union: &Answer) -> bool {
    copies_up_to_a_name_that_is_gone(op, kernel, union)
        || needs_a_longer_redirect(op, kernel, union)
}
