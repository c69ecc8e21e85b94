//! Times finer than a millisecond: waits, and the CPU clock of another process.

use anyhow::{Context, Result};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::Pid;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Waits until `at`. Tokio's own timer counts whole milliseconds and rounds up; the kernel's
/// high-resolution timer behind a `timerfd` is a few microseconds late at most.
///
/// # Errors
/// Where the kernel has no timer left.
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
        reason = "its successor is `unsafe`, as some types change their descriptor; `OwnedFd` never does"
    )]
    let timer = AsyncFd::new(OwnedFd::from(timer))?;
    let _ = timer.readable().await?;
    Ok(())
}

/// What a process and all of its threads, also those that ended, have used of the CPUs, in the
/// scheduler's own nanoseconds.
#[derive(Clone, Copy)]
pub struct CpuClock(nix::time::ClockId);

impl CpuClock {
    /// The clock of the process `pid`.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        Ok(Self(nix::time::clock_getcpuclockid(pid).context("no CPU clock")?))
    }

    /// CPU time used so far.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn read(self) -> Result<Duration> {
        Ok(nix::time::clock_gettime(self.0).context("the process is gone")?.into())
    }
}
