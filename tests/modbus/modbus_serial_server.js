// A Modbus TCP server of npm's modbus-serial: `server PORT`. Same contents as the libmodbus one. Prints the port when it
// listens, and serves until it is killed. For each line of input it prints what JavaScript reads in its first 64
// registers: for "type order" the values from each address on; 64-bit integers as text, NaN and infinity as null.
const { ServerTCP } = require("modbus-serial");

const SIZE = 2000, SHOWN = 64;
const holding = Array.from({ length: SIZE }, (_, i) => i);
const input = holding.map((i) => i + 5000);
const coils = holding.map((i) => i % 3 === 0);
const discrete = [...coils];

function at(table, address) {
    if (address >= SIZE) throw { modbusErrorCode: 2, msg: "illegal data address" };
    return table[address];
}
const vector = {
    getHoldingRegister: (address) => at(holding, address),
    getInputRegister: (address) => at(input, address),
    getCoil: (address) => at(coils, address),
    getDiscreteInput: (address) => at(discrete, address),
    setRegister: (address, value) => { at(holding, address); holding[address] = value; },
    setCoil: (address, value) => { at(coils, address); coils[address] = value; },
};

// the bytes of one value, put into an order that Buffer has a method for
const ORDERS = {
    ABCD: [(b) => b, "BE"],
    CDAB: [(b) => b.swap16(), "LE"],
    BADC: [(b) => b.swap16(), "BE"],
    DCBA: [(b) => b, "LE"],
};
const READERS = {
    int16: [2, "readInt16"], uint16: [2, "readUInt16"], int32: [4, "readInt32"], uint32: [4, "readUInt32"],
    int64: [8, "readBigInt64"], uint64: [8, "readBigUInt64"], float32: [4, "readFloat"], float64: [8, "readDouble"],
};

function meanings() {
    const image = Buffer.alloc(2 * SHOWN), said = {};
    for (let i = 0; i < SHOWN; i++) image.writeUInt16BE(holding[i], 2 * i);
    for (const [type, [size, method]] of Object.entries(READERS)) {
        for (const [order, [arrange, end]] of Object.entries(ORDERS)) {
            said[`${type} ${order}`] = Array.from({ length: SHOWN - size / 2 + 1 }, (_, i) => {
                const value = arrange(Buffer.from(image.subarray(2 * i, 2 * i + size)))[method + end]();
                if (typeof value === "bigint") return value.toString();
                return Object.is(value, -0) ? "-0" : Number.isFinite(value) ? value : null; // JSON has no -0
            });
        }
    }
    return said;
}

const server = new ServerTCP(vector, { host: "127.0.0.1", port: Number(process.argv[2]), unitID: 255 });
server.on("initialized", () => console.log(process.argv[2]));
process.stdin.on("data", (lines) => {
    for (let i = 0; i < lines.toString().split("\n").length - 1; i++) console.log(JSON.stringify(meanings()));
});
