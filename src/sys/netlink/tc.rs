//! Traffic control, tc(8): what arrives at one interface is taken as if it had arrived at another.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::Netlink;

/// Filters of all protocols, first in order: `tcm_info` of rtnetlink(7).
const EVERY_PROTOCOL: u32 = 1 << 16 | (libc::ETH_P_ALL as u16).to_be() as u32;

impl Netlink {
    /// Takes what arrives at the interface with the number `from` as if it had arrived at `to`. Ends with either of
    /// them.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; ENOENT when the kernel lacks clsact, the u32 classifier or mirred.
    pub fn redirect_arriving(&mut self, from: u32, to: u32) -> io::Result<()> {
        let index = from.cast_signed();
        let mut hook = TcMessage::with_index(index);
        (hook.header.parent, hook.header.handle.major) = (TcHandle::CLSACT, TcHandle::CLSACT.major);
        hook.attributes.push(TcAttribute::Kind("clsact".into()));
        self.add(RouteNetlinkMessage::NewQueueDiscipline(hook))?;
        let mut filter = TcMessage::with_index(index);
        filter.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor: TcHandle::MIN_INGRESS };
        filter.header.info = EVERY_PROTOCOL;
        filter.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.into()));
        filter.attributes.push(TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(everything())),
            TcOption::U32(TcFilterU32Option::Action(vec![redirect(to)])),
        ]));
        self.add(RouteNetlinkMessage::NewTrafficFilter(filter))
    }
}

/// Any word, masked with nothing, is zero.
fn everything() -> TcU32Selector {
    let mut selector = TcU32Selector::default();
    let mut key = TcU32Key::default();
    (key.mask, key.val) = (0, 0);
    (selector.flags, selector.nkeys, selector.keys) = (TcU32SelectorFlags::Terminal, 1, vec![key]);
    selector
}

fn redirect(to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    (mirror.eaction, mirror.ifindex) = (TcMirrorActionType::IngressRedir, to);
    let options = vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))];
    let mut action = TcAction::default();
    action.tab = 1;
    action.attributes = vec![TcActionAttribute::Kind(TcActionMirror::KIND.into()), TcActionAttribute::Options(options)];
    action
}
