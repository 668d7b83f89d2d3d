//! The fields of CRIU's messages that are needed here.

/// `mm_entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mm {
    #[prost(message, repeated, tag = "14")]
    pub areas: Vec<Vma>,
}

/// `vma_entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Vma {
    #[prost(uint64, tag = "1")]
    pub start: u64,
    #[prost(uint64, tag = "2")]
    pub end: u64,
    #[prost(uint32, tag = "5")]
    pub protection: u32,
    #[prost(uint32, tag = "6")]
    pub flags: u32,
    #[prost(uint32, tag = "7")]
    pub status: u32,
    #[prost(uint64, tag = "9")]
    pub advice: u64,
}

/// `pagemap_head`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// `pagemap_entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pagemap {
    #[prost(uint64, required, tag = "1")]
    pub address: u64,
    /// All that CRIU before 4.2 knows.
    #[prost(uint32, required, tag = "2")]
    pub pages_until_4_1: u32,
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub pages: Option<u64>,
}

/// `pstree_entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// `core_entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Core {
    #[prost(message, optional, tag = "2")]
    pub x86: Option<ThreadX86>,
    #[prost(message, optional, tag = "8")]
    pub arm: Option<ThreadArm>,
}

/// `thread_info_x86`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThreadX86 {
    #[prost(message, optional, tag = "2")]
    pub registers: Option<RegistersX86>,
}

/// `user_x86_regs_entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistersX86 {
    #[prost(uint64, tag = "20")]
    pub stack_pointer: u64,
}

/// `thread_info_aarch64`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThreadArm {
    #[prost(message, optional, tag = "3")]
    pub registers: Option<RegistersArm>,
}

/// `user_aarch64_regs_entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistersArm {
    #[prost(uint64, tag = "2")]
    pub stack_pointer: u64,
}
