//! The configuration of registries: registries.conf, daemon.json, hosts.toml, policy.json. The first byte
//! chooses the file, the first line is the name of an image.

use unionfs::registry::fuzzing;

use super::one_line;

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    let (name, text) = text.split_once('\n').unwrap_or(("app", &text));
    let refused = match mode % 4 {
        0 => fuzzing::registries_conf(text, name),
        1 => fuzzing::daemon_json(text, name),
        2 => fuzzing::hosts_toml(text),
        // A key is read from the file that the policy names.
        _ if text.contains("keyPath") => Vec::new(),
        _ => fuzzing::policy(text, name),
    };
    for error in &refused {
        one_line(error);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let registries = [
        "tool:3\nunqualified-search-registries = [\"s.example\", \"docker.io\"]\nshort-name-mode = \
         \"permissive\"\ncredential-helpers = [\"x\"]\n[aliases]\ntool = \"quay.example/tools/tool\"\n",
        "a.b.wild.example/app:2\n[[registry]]\nprefix = \"*.wild.example\"\nlocation = \"w.example/x\"\n\
         insecure = true\n[[registry.mirror]]\nlocation = \"m.example\"\npull-from-mirror = \"tag-only\"\n",
        "r.example:5000/app\n[[registry]]\nlocation = \"r.example:5000\"\nmirror-by-digest-only = true\n\
         blocked = false\n[registries.search]\nregistries = []\n",
    ];
    let daemons = [
        "app\n{\"registry-mirrors\": [\"https://m.example\", \"http://10.0.0.1:5000/\"], \
         \"insecure-registries\": [\"r.example:5000\", \"10.0.0.0/8\", \"fd00::/8\"]}",
        "10.1.2.3:80/app\n{\"insecure-registries\": [\"0.0.0.0/0\", \"docker.io\"], \"data-root\": \"/x\"}",
    ];
    let hosts = [
        "x\nserver = \"https://registry.example\"\n[host.\"https://m.example:5000/v2/x\"]\n\
         capabilities = [\"pull\", \"resolve\"]\nskip_verify = true\noverride_path = true\nca = [\"/a.pem\"]\n\
         client = [[\"/c.pem\", \"/k.pem\"]]\n[host.\"https://m.example:5000/v2/x\".header]\nx-a = [\"b\"]\n",
    ];
    let policies = [
        "r.example/team/app:1\n{\"default\": [{\"type\": \"reject\"}], \"transports\": {\"docker\": {\
         \"r.example/team\": [{\"type\": \"insecureAcceptAnything\"}], \"*.example\": []}}}",
        "r.example/app\n{\"default\": [{\"type\": \"sigstoreSigned\", \"keyData\": \"AAAA\", \"signedIdentity\": \
         {\"type\": \"remapIdentity\", \"prefix\": \"r.example\", \"signedPrefix\": \"s.example\"}}, \
         {\"type\": \"signedBy\", \"keyType\": \"GPGKeys\"}]}",
    ];
    let all: [(u8, &[&str]); 4] = [(0, &registries), (1, &daemons), (2, &hosts), (3, &policies)];
    all.iter()
        .flat_map(|(mode, texts)| {
            texts
                .iter()
                .map(|text| [&[*mode], text.as_bytes()].concat())
        })
        .collect()
}
