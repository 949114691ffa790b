class SuChuangImageGenerator {
constructor(token, baseUrl = "http://localhost:8081") {
this.token = token;
this.baseUrl = baseUrl;
}
// 提交文生图任务
async generateImage(prompt, aspectRatio = "1:1") {
const modelMap = {
"auto": "sc_soraimg_text_auto",
"1:1": "sc_soraimg_text_1x1",
"2:3": "sc_soraimg_text_2x3",
"3:2": "sc_soraimg_text_3x2"
};
const response = await fetch(`${this.baseUrl}/user/ai/tasks/submit`, {
method: "POST",
headers: {
"Content-Type": "application/json",
"Authorization": `Bearer ${this.token}`
},
body: JSON.stringify({
modelName: modelMap[aspectRatio],
prompt: prompt
})
});
const result = await response.json();
if (result.code === 200) {
return result.data.taskNo;
}
throw new Error(result.message);
}
// 提交图生图任务
async transformImage(prompt, imageUrl, aspectRatio = "1:1") {
const modelMap = {
"auto": "sc_soraimg_img2img_auto",
"1:1": "sc_soraimg_img2img_1x1",
"2:3": "sc_soraimg_img2img_2x3",
"3:2": "sc_soraimg_img2img_3x2"
};
const response = await fetch(`${this.baseUrl}/user/ai/tasks/submit`, {
method: "POST",
headers: {
"Content-Type": "application/json",
"Authorization": `Bearer ${this.token}`
},
body: JSON.stringify({
modelName: modelMap[aspectRatio],
prompt: prompt,
imageUrl: imageUrl
})
});
const result = await response.json();
if (result.code === 200) {
return result.data.taskNo;
}
throw new Error(result.message);
}
// 查询任务状态
async getTaskStatus(taskNo) {
const response = await fetch(`${this.baseUrl}/user/ai/tasks/${taskNo}`, {
headers: {
"Authorization": `Bearer ${this.token}`
}
});
const result = await response.json();
if (result.code === 200) {
return result.data;
}
throw new Error(result.message);
}
// 等待任务完成(带超时)
async waitForCompletion(taskNo, timeout = 180000) {
const startTime = Date.now();
return new Promise((resolve, reject) => {
const interval = setInterval(async () => {
try {
const task = await this.getTaskStatus(taskNo);
if (task.status === 'completed') {
clearInterval(interval);
resolve(task.resultUrl);
} else if (task.status === 'failed') {
clearInterval(interval);
reject(new Error(task.errorMessage || '任务失败'));
} else if (Date.now() - startTime > timeout) {
clearInterval(interval);
reject(new Error('任务超时'));
}
} catch (error) {
clearInterval(interval);
reject(error);
}
}, 5000);
});
}
// 查询积分余额
async getBalance() {
const response = await fetch(`${this.baseUrl}/user/points/consumption/balance`, {
headers: {
"Authorization": `Bearer ${this.token}`
}
});
const result = await response.json();
if (result.code === 200) {
return result.data.balance;
}
throw new Error(result.message);
}
}
