//! The decoder of packets.

use crate::input::Input;

/// Every packet that is accepted is what its values encode to: nothing in it was overlooked.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let descriptors = usize::from(input.u8());
    let packet = input.0;
    if let Some(again) = handoff::fuzz::reencode(packet, descriptors) {
        assert_eq!(again, packet);
    }
}
