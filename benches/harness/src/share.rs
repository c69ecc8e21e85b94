//! The share of a CPU that Lambda gives a function by its memory size, enforced with a `cpu` cgroup of
//! version 1 or 2.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The measured memory sizes in MB, in ascending order.
pub const SIZES: [u32; 4] = [128, 256, 512, WHOLE_CORE];
/// The memory size at which Lambda gives a function a whole core.
pub const WHOLE_CORE: u32 = 1769;
/// The length of a period. A function that has used its slice waits for the next period.
pub const PERIOD_MS: f64 = 20.0;

const PERIOD_MICROS: u32 = 20_000;
const NAME: &str = "event-ingest-bench-";

/// The CPU time that a function may use in each period, in milliseconds.
pub fn slice_ms(memory_mb: u32) -> f64 {
    f64::from(slice_micros(memory_mb)) / 1000.0
}

fn slice_micros(memory_mb: u32) -> u32 {
    PERIOD_MICROS * memory_mb / WHOLE_CORE
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A cgroup of this run. It is removed at the end.
pub struct CpuGroup {
    version: Version,
    directory: PathBuf,
}

impl CpuGroup {
    /// Creates the group, without a limit.
    ///
    /// # Errors
    /// If there is no `cpu` controller or this user may not write to it.
    pub fn create() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("no list of mounts")?;
        let (version, parent) = controller(&mounts).context("no cpu cgroup is mounted")?;
        remove_old(&parent);
        if version == Version::Two {
            // Often enabled already. The root group may have both processes and controllers.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+cpu");
        }
        let directory = parent.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let group = Self { version, directory };
        group.limit(Some(WHOLE_CORE))?;
        group.limit(None)?;
        Ok(group)
    }

    /// Moves a process with all its threads into the group.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Limits the group to the share of a memory size, or lifts the limit.
    pub fn limit(&self, memory_mb: Option<u32>) -> Result<()> {
        let slice = memory_mb.map(slice_micros);
        match self.version {
            Version::One => {
                self.write("cpu.cfs_period_us", &PERIOD_MICROS.to_string())?;
                self.write("cpu.cfs_quota_us", &slice.map_or("-1".to_owned(), |slice| slice.to_string()))
            }
            Version::Two => {
                let slice = slice.map_or("max".to_owned(), |slice| slice.to_string());
                self.write("cpu.max", &format!("{slice} {PERIOD_MICROS}"))
            }
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        let file = self.directory.join(name);
        // Opened without `create`, because only the kernel creates files here.
        let opened = fs::OpenOptions::new().write(true).open(&file);
        let written = opened.and_then(|mut open| std::io::Write::write_all(&mut open, value.as_bytes()));
        written.with_context(|| format!("cannot write {value:?} to {}", file.display()))
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        // Fails if a process of a run that was aborted has not ended yet. The next run removes the group.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// The directory of the `cpu` controller, given the contents of `/proc/mounts`. Version 1 comes first,
/// because where both are mounted, version 2 does not have the controller.
fn controller(mounts: &str) -> Option<(Version, PathBuf)> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let mut version_2 = None;
    for (place, kind, options) in mounts {
        match kind {
            "cgroup" if options.split(',').any(|option| option == "cpu") => return Some((Version::One, place.into())),
            "cgroup2" => version_2 = Some((Version::Two, place.into())),
            _ => {}
        }
    }
    version_2
}

/// Removes the groups of runs that were aborted.
fn remove_old(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(NAME));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_the_share_of_a_period() {
        assert_eq!(SIZES.map(slice_micros), [1447, 2894, 5788, 20_000]);
    }

    #[test]
    fn the_cpu_controller_is_found_in_both_versions() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n";
        assert_eq!(controller(hybrid), Some((Version::One, "/sys/fs/cgroup/cpu,cpuacct".into())));
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(controller(unified), Some((Version::Two, "/sys/fs/cgroup".into())));
        assert_eq!(controller("tmpfs / tmpfs rw 0 0\n"), None);
    }
}
