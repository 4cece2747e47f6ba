//! Catalogs whose header is correct for any content. The first byte chooses: even, the bytes alone
//! are read; odd, they serve a union of the layers that they might describe. The union must not
//! show anything that is in none of these layers.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use unionfs::catalog::format::{Header, LayerRecord};
use unionfs::catalog::view::View;
use unionfs::layer::StackSpec;
use zerocopy::FromBytes as _;

use crate::catalogs::{build, observe, seal, stack, walk};

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

const SECRET: &[u8] = b"in no layer";

/// Layers beside a file that no union of them may show.
struct Bench {
    _dir: tempfile::TempDir,
    stack: StackSpec,
    path: PathBuf,
    catalog: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["upper", "lower"].map(|layer| dir.path().join(layer));
        for (layer, text) in layers.iter().zip(["one", "two"]) {
            fs::create_dir_all(layer.join("merged/deep")).unwrap();
            fs::write(layer.join("merged").join(text), text).unwrap();
            fs::write(layer.join("file"), text).unwrap();
            std::os::unix::fs::symlink(text, layer.join("merged/deep/link")).unwrap();
        }
        fs::write(layers[1].join(".wh.gone"), "").unwrap();
        fs::write(dir.path().join("secret"), SECRET).unwrap();
        let (stack, path) = (stack(&layers), dir.path().join("catalog"));
        build(&stack, &path);
        Self {
            _dir: dir,
            stack,
            catalog: fs::read(&path).unwrap(),
            path,
        }
    }

    /// Writes the identity of the present layers into a catalog, in place of those of another run.
    fn adopt(&self, bytes: &mut [u8]) {
        let (from, count) = (size_of::<Header>(), 2 * size_of::<LayerRecord>());
        let layers = &self.catalog[from..from + count];
        if let Some(theirs) = bytes.get_mut(from..from + count) {
            theirs.copy_from_slice(layers);
        }
    }
}

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    BENCH.with_borrow(|bench| {
        bench.adopt(&mut bytes);
        seal(&mut bytes);
        let Ok(view) = View::parse(&bytes[..]) else {
            return;
        };
        let names = view.walk();
        assert!(names.is_err() || names.is_ok_and(|names| names <= bytes.len() as u64));
        let _ = (view.verify(), view.store(), view.counts(), view.notes());
        if let Ok(root) = view.root() {
            for name in [&b"file"[..], b"merged", b""] {
                let _ = view.find(&root, name);
            }
        }
        if mode % 2 == 1 {
            fs::write(&bench.path, &bytes).unwrap();
            let union = observe(&bench.stack, &bench.path);
            for (name, data) in walk(&union, 200) {
                assert_ne!(data.unwrap_or_default(), SECRET, "{}", name.escape_ascii());
            }
        }
    });
}

pub fn seeds() -> Vec<Vec<u8>> {
    BENCH.with_borrow(|bench| {
        let header = Header::read_from_prefix(&bench.catalog[..]);
        assert!(header.is_ok());
        let cut = bench.catalog.len() / 2;
        let whole = |mode: u8| [&[mode], &bench.catalog[..]].concat();
        vec![
            whole(0),
            whole(1),
            [&[0], &bench.catalog[..cut]].concat(),
            vec![1],
        ]
    })
}
