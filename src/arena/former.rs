//! What whoever used an arena before may have left in it besides its content.

use super::Arena;
use crate::error::Result;

impl Arena {
    /// Ends a checkpoint and a recording, and lifts all poison, for a next user who is to find none of it:
    /// neither what the last one has kept, nor what would stop its own. Where there is nothing of the kind
    /// it is three loads.
    pub(crate) fn forget_former_user(&self) -> Result<()> {
        let region = self.region();
        if region.track.is_on() {
            self.forget_checkpoint();
        }
        if region.tables.count_poisoned() > 0 {
            self.unpoison(0..self.len())?;
        }
        if region.log.is_in_use() {
            self.stop_recording()?;
        }
        Ok(())
    }
}
