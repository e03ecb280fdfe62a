//! Threads: how many the kernels' pool has, and where a program's work begins, inside of that pool.

use crate::pass::isolated;
use candle_core::{Error, Result, bail};
use std::sync::{Mutex, TryLockError};

/// The largest pool: more threads than any machine has cores; a hundred thousand of them take minutes to start.
const MOST: usize = 1024;

/// Stack of a thread of the pool, as large as a main thread's: [`in_pool`] may bring any work there.
const STACK: usize = 8 << 20;

/// Sizes the pool of threads that the kernels run in, and returns how many threads it has. `None` is one for each
/// processor core, or what `RAYON_NUM_THREADS` says.
///
/// The pool is rayon's global one, so this has to come before anything has used it: first thing in `main`. A program
/// that never calls it gets a pool as for `None` at the first operation, whose threads have rayon's smaller stack.
///
/// Candle's own operations run in the same pool, and cut a matrix product into as many pieces as `RAYON_NUM_THREADS`
/// says, or as there are cores. Whoever wants that number to agree too sets the variable before the program starts; a
/// program that runs cannot change its environment safely. Neither number changes a bit of a kernel's result.
///
/// ```no_run
/// let threads = zoo_core::threads::set_threads(Some(2))?;
/// assert_eq!(threads, 2);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// No thread or more than 1024; a pool that has started already, or cannot start.
pub fn set_threads(threads: Option<usize>) -> Result<usize> {
    if let Some(n) = threads.filter(|n| !(1..=MOST).contains(n)) {
        bail!("the number of threads must be from 1 to {MOST}, got {n}")
    }
    // For rayon, 0 is its own choice.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).stack_size(STACK);
    pool.build_global().map_err(Error::wrap)?;
    Ok(rayon::current_num_threads())
}

/// Whether the pool has somebody's work already.
static TAKEN: Mutex<()> = Mutex::new(());

/// Runs `work` in a thread of the pool that the kernels run in, and returns what it does. From any other thread each
/// operation wakes the pool and sleeps until it is done: in a training step of cifar_densenet121 thousands of times. In
/// one of the pool's own an operation begins at once, with this thread at work too.
///
/// The pool takes one work at a time. While it has one, another thread's runs where it is: a thread that waits inside
/// an operation would take up the other work, and come back when all of that is done.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// let sum = zoo_core::threads::in_pool(|| Tensor::ones(4, DType::F32, &Device::Cpu)?.sum_all()?.to_scalar::<f32>());
/// assert_eq!(sum?, 4.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        // A pool's thread, perhaps one that waits inside another work's operation.
        return isolated(work);
    }
    let _taken = match TAKEN.try_lock() {
        Ok(guard) => guard,
        // Whoever panicked has left the pool.
        Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
        Err(TryLockError::WouldBlock) => return work(),
    };
    // The thread that begins it may be one that waits, too.
    rayon::scope(|_| isolated(work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::is_on_tape;
    use crate::tape::recorded;
    use candle_core::{DType, Device, Result, Tensor};
    use std::sync::mpsc::channel;
    use std::thread;

    #[test]
    fn a_pool_without_threads_or_with_far_too_many_is_refused() {
        for n in [0, MOST + 1, usize::MAX] {
            let error = set_threads(Some(n)).unwrap_err().to_string();
            assert!(error.contains(&format!("from 1 to 1024, got {n}")), "{error}");
        }
    }

    #[test]
    fn the_pool_takes_one_work_at_a_time() {
        let (began, has_begun) = channel();
        let (end, may_end) = channel::<()>();
        let first = thread::spawn(move || {
            in_pool(move || {
                began.send(rayon::current_thread_index()).unwrap();
                may_end.recv().unwrap();
            });
        });
        // If another test has the pool, the first work is not in it, and there is nothing to see.
        if has_begun.recv().unwrap().is_some() {
            assert_eq!(in_pool(rayon::current_thread_index), None);
        }
        end.send(()).unwrap();
        first.join().unwrap();
        assert_eq!(in_pool(|| in_pool(|| 7)), 7);
    }

    /// Work from outside that a thread of the pool takes up while it waits in the midst of a pass finds no tape there.
    #[test]
    fn work_that_a_waiting_thread_takes_up_has_no_tape() -> Result<()> {
        let store = crate::VarStore::new(0, DType::F32, &Device::Cpu);
        let layer = crate::Linear::new(2, 2, store.root())?;
        let xs = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
        rayon::scope(|_| {
            for _ in 0..100 {
                recorded(&xs, true, |xs| {
                    assert!(is_on_tape(xs));
                    // Even for a tensor that the pass knows: the work begins afresh.
                    let known = xs.clone();
                    let visitor = thread::spawn(move || in_pool(|| is_on_tape(&known)));
                    while !visitor.is_finished() {
                        rayon::yield_now();
                    }
                    assert!(!visitor.join().unwrap());
                    crate::ModuleT::forward_t(&layer, xs, true)
                })?;
            }
            Ok(())
        })
    }
}
