//! Sleep with a precision below a millisecond, and the CPU clock of another process.

use anyhow::{Context, Result};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::Pid;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Waits until `at`. Tokio's timer rounds up to whole milliseconds; the kernel's high-resolution timer
/// behind a `timerfd` is at most a few microseconds late.
///
/// # Errors
/// If the kernel has no timer left.
pub async fn sleep_until(at: Instant) -> Result<()> {
    let left = at.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(());
    }
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    timer.set(Expiration::OneShot(TimeSpec::from(left)), TimerSetTimeFlags::empty())?;
    #[expect(
        deprecated,
        reason = "its successor is `unsafe` because some types change their descriptor, which `OwnedFd` never does"
    )]
    let timer = AsyncFd::new(OwnedFd::from(timer))?;
    let _ = timer.readable().await?;
    Ok(())
}

/// The CPU time of a process and all its threads, including those that ended, in the scheduler's
/// nanoseconds.
#[derive(Clone, Copy)]
pub struct CpuClock(nix::time::ClockId);

impl CpuClock {
    /// The clock of the process `pid`.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        Ok(Self(nix::time::clock_getcpuclockid(pid).context("no CPU clock")?))
    }

    /// The CPU time used so far.
    ///
    /// # Errors
    /// If the process ended.
    pub fn read(self) -> Result<Duration> {
        Ok(nix::time::clock_gettime(self.0).context("the process ended")?.into())
    }
}
